"""Networks with the inputs and outputs that an exported graph has."""
