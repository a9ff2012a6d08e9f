"""Load by `sluice bench`, whose clients cost little of the cores that the cluster needs."""

import json
import resource
import subprocess
import tempfile

from cluster import BIN_DIR, MODEL_NAME


def bench(cluster, output_tokens, *flags):
    """The figures of one run with short prompts, and `cpu_seconds` that the clients took of the cores."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run([str(BIN_DIR / "sluice"), "bench", "--url", cluster.base_url, "--model", MODEL_NAME, "--quiet",
                        "--prompt-tokens", "8", "--output-tokens", str(output_tokens), "--json", file.name, *flags],
                       check=True, stdout=subprocess.DEVNULL, timeout=600)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
        return json.load(file)["runs"][0] | {"cpu_seconds": cpu_seconds}
