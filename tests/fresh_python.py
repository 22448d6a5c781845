"""Programs in a Python that has imported packages but nothing of this project: started once, then forked for each."""

import json
import subprocess
import sys
from pathlib import Path

# Reads a program's folder, file and arguments in each line, runs it in a process of its own, and answers with its status.
KEEPER = """
import json, os, sys, traceback, warnings

for package in sys.argv[1:]:
    __import__(package)

def run(folder, argv, output):
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    warnings.simplefilter("error", UserWarning)
    sys.argv[:], sys.path[0] = argv, folder
    with open(argv[0]) as file:
        exec(compile(file.read(), argv[0], "exec"), {"__name__": "__main__"})

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        status = 1
        try:
            run(*json.loads(line))
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class FreshPython:
    """A Python that has these packages imported; a UserWarning in a program is an error."""

    def __init__(self, *packages: str):
        command = [sys.executable, "-c", KEEPER, *packages]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, folder: Path, program: str, *argv) -> tuple[int, str]:
        """The status of a program in this folder, and what it said."""
        (folder / "program.py").write_text(program)
        output = folder / "said.txt"
        words = ["program.py", *map(str, argv)]
        self.process.stdin.write(json.dumps([str(folder), words, str(output)]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), output.read_text()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
