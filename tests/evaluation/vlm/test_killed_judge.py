"""kill -9 while a judge is being asked: what it said is kept, and the next run asks for the rest alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from judge_server import serving

ROOT = Path(__file__).parents[3]
ASK = """
import sys
from pathlib import Path
from PIL import Image
from escdiff.evaluation.vlm.endpoint import Endpoint
from escdiff.evaluation.vlm.panel import Item, Panel
from escdiff.evaluation.vlm.rubrics import Question, Rubrics
rubrics = Rubrics((Question("look", "whole", "How alike?"),), parallel=2)
black = Image.new("RGB", (16, 16))
items = [Item("How alike?", (black, Image.new("RGB", (16, 16), (10 * i,) * 3))) for i in range(12)]
print(Panel(Endpoint("stub", max_tokens=int(sys.argv[2])), rubrics, Path(sys.argv[1])).ask(items))
"""


def test_nothing_is_paid_twice_after_a_kill(tmp_path):
    killed = threading.Event()

    def slow(body, number):
        if number > 4:
            killed.wait()

    with serving(slow) as (url, bodies):
        environment = os.environ | {"OPENAI_BASE_URL": url}

        def command(mark):  # so that a run's requests are known from another's
            return [sys.executable, "-c", ASK, str(tmp_path), str(mark)]

        process = subprocess.Popen(command(100), cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        until = time.time() + 300  # a busy machine takes its time to start
        while len(list(tmp_path.glob("judge/*/*.json"))) < 3 and time.time() < until and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed.set()
        kept = len(list(tmp_path.glob("judge/*/*.json")))
        assert 3 <= kept <= 4
        done = subprocess.run(command(101), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == str([4.0 - 10 * i // 32 for i in range(12)]).split()
        assert sum(body["max_tokens"] == 101 for body in bodies) == 12 - kept
