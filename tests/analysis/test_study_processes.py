import signal
import subprocess
import sys
import time

STUDY = """
import sys, threading
from detrx.analysis.study_processes import pass_on_sigterm, run_process

training = "import time; print('begun', flush=True); time.sleep(60)"
with pass_on_sigterm():
    thread = threading.Thread(target=run_process, args=([sys.executable, "-c", training],))
    thread.start()
    thread.join()
"""


def test_sigterm_ends_a_study_and_its_trainings():
    study = subprocess.Popen([sys.executable, "-c", STUDY], stdout=subprocess.PIPE, text=True)
    assert study.stdout.readline() == "begun\n"
    study.terminate()
    begin = time.monotonic()
    assert study.wait(10) == -signal.SIGTERM
    assert study.stdout.read() == "", "it is closed when the training has ended, too"
    assert time.monotonic() - begin < 30
