"""Nothing of ours runs what came as data: no pickles, no remote code, no shell, no YAML that makes objects."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load", "subprocess.getoutput"}
OPTIONS = {"trust_remote_code": True, "shell": True, "weights_only": False, "allow_pickle": True}


def faults_of(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            safe = any(one.arg == "weights_only" and ast.unparse(one.value) == "True" for one in node.keywords)
            found += [called] if called in CALLS and not safe else []
            for one in node.keywords:
                if one.arg in OPTIONS and not (
                    isinstance(one.value, ast.Constant) and one.value.value is not OPTIONS[one.arg]
                ):
                    found.append(f"{called}({one.arg}={ast.unparse(one.value)})")
    return found


def test_no_source_runs_data() -> None:
    sources = [path for folder in ("libs", "services") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    found = {str(path.relative_to(ROOT)): faults for path in sources if (faults := faults_of(path.read_text()))}
    assert found == {}


def test_the_search_finds_each() -> None:
    for line in ("import pickle", "from dill import loads", "torch.load(p)", "torch.load(p, weights_only=False)",
                 "f(trust_remote_code=True)", "run(c, shell=True)", "yaml.load(t)", "np.load(p, allow_pickle=True)",
                 "eval(t)", "f(shell=asked)"):  # fmt: skip
        assert faults_of(line), line
    assert faults_of("torch.load(p, weights_only=True)\nf(shell=False)") == []
