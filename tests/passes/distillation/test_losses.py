"""Losses between student and teacher, against the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from fmopt.edge.embedding import pool
from fmopt.passes.distillation import losses
from fmopt.training.examples import IGNORED


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


def test_soft_targets_are_the_divergence_of_softened_distributions():
    got, wanted = draw(5, 3), draw(5, 3, seed=1)
    soft = [softmax(x.numpy().astype(float) / 2, axis=1) for x in (got, wanted)]
    expected = 4 * rel_entr(soft[1], soft[0]).sum(axis=1).mean()
    assert float(losses.logit_loss([got], [wanted], 2.0, "classes")) == pytest.approx(expected, rel=1e-5)
    assert float(losses.logit_loss([wanted], [wanted], 2.0, "several")) == pytest.approx(0, abs=1e-6)
    assert float(losses.logit_loss([got], [wanted], 2.0, "number")) == pytest.approx(
        float(((got - wanted) ** 2).mean())
    )


def test_labels_that_are_not_there_do_not_count():
    logits = draw(4, 3)
    one = losses.task_loss([logits], {"labels": torch.tensor([2, IGNORED, IGNORED, IGNORED])})
    assert float(one) == pytest.approx(float(-logits[0].log_softmax(-1)[2]))
    assert float(losses.task_loss([logits], {"labels": torch.full((4,), IGNORED)})) == 0.0
    numbers = torch.tensor([1.0, float("nan"), 3.0, float("nan")])
    two = losses.task_loss([torch.zeros(4, 1)], {"labels": numbers})
    assert float(two) == pytest.approx(5.0)
    assert float(losses.task_loss([torch.zeros(4, 1)], {"labels": torch.full((4,), float("nan"))})) == 0.0
    yes = torch.tensor([[1.0, 0.0], [float("nan")] * 2])
    assert float(losses.task_loss([torch.zeros(2, 2)], {"labels": yes})) == pytest.approx(np.log(2))
    both = {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([IGNORED, IGNORED])}
    assert float(losses.task_loss([torch.zeros(2, 4), torch.zeros(2, 4)], both)) == pytest.approx(np.log(4) / 2)


def test_states_of_padding_do_not_count():
    wanted = draw(2, 4, 6)
    got = wanted * 1.1
    assert float(losses.hidden_loss([got], [wanted], [MASK])) == pytest.approx(0.01, rel=1e-4)
    got[~MASK] = 1e3
    assert float(losses.hidden_loss([got], [wanted], [MASK])) == pytest.approx(0.01, rel=1e-4)


def test_relations_compare_widths_that_differ_and_ignore_rotations():
    wide = draw(2, 4, 12)
    turned = wide.unflatten(-1, (3, 4)).matmul(torch.linalg.qr(draw(4, 4, seed=2)).Q).flatten(-2)
    assert float(losses.relation_loss([turned], [wide], MASK, 3)) == pytest.approx(0, abs=1e-5)
    narrow = draw(2, 4, 6, seed=3)
    before = float(losses.relation_loss([narrow], [wide], MASK, 3))
    narrow[~MASK] = 50.0
    assert float(losses.relation_loss([narrow], [wide], MASK, 3)) == pytest.approx(before, rel=1e-5)
    assert before > 0.1


def test_relation_heads_divide_all_widths():
    assert losses.relation_heads([160, 384], 12) == 8
    assert losses.relation_heads([384, 384], 12) == 12


def test_similarities_see_order_not_width():
    texts = draw(6, 8)
    turned = torch.cat([texts @ torch.linalg.qr(draw(8, 8, seed=1)).Q, torch.zeros(6, 4)], dim=1)
    assert float(losses.similarity_loss(turned, texts)) == pytest.approx(0, abs=1e-5)
    assert float(losses.similarity_loss(draw(6, 8, seed=2), texts)) > 0.5
    assert float(losses.similarity_loss(texts[:2], texts[:2])) == 0.0
    assert float(losses.cosine_loss(3 * texts, texts)) == pytest.approx(0, abs=1e-6)
    assert float(losses.cosine_loss(-texts, texts)) == pytest.approx(2)


@pytest.mark.parametrize("how", ["mean", "cls", "max"])
def test_pooling_is_that_of_production(how):
    states = draw(2, 4, 6)
    expected = pool(states.numpy(), MASK.numpy().astype(np.int64), how, False)
    np.testing.assert_allclose(losses.pooled(states, MASK, how).numpy(), expected, rtol=1e-5)


def test_a_student_finds_the_layers_it_kept():
    teachers = [draw(2, 4, 6, seed=seed) for seed in range(6)]
    kept = [teachers[number] + 0.1 * draw(2, 4, 6, seed=9) for number in (0, 1, 3, 5)]
    assert losses.matched_layers(kept, teachers, MASK) == [0, 1, 3, 5]
    assert losses.matched_layers(teachers[:1], teachers, MASK) == [5]
    assert losses.matched_layers(teachers, teachers, MASK) == [0, 1, 2, 3, 4, 5]
    narrow = [state[..., :3] for state in teachers[:3]]
    assert losses.matched_layers(narrow, teachers, MASK) == [1, 3, 5]
