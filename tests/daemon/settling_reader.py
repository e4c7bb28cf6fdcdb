"""A program that does infer's part on channel "frames": takes, checks, settles, and writes what it saw.

Arguments: runtime folder, shm folder, camera, file for `seq value height width` lines, milliseconds a frame
takes. Ends with the source.
"""

import sys
import time
from pathlib import Path

from visaged.daemon.intake import Ended, Intake, Taken


def main() -> None:
    runtime, shm, camera, out, ms = sys.argv[1:6]
    intake = Intake([camera], Path(runtime), Path(shm))
    with Path(out).open("a", buffering=1) as file:
        print("up", flush=True)
        while True:
            for name in intake.wait(50):
                taken = intake.take(name)
                if isinstance(taken, Ended):
                    file.write(f"end {taken.reason}\n")
                    return
                if isinstance(taken, Taken):
                    rgb = taken.frame.rgb
                    time.sleep(float(ms) / 1000)
                    file.write(f"{taken.frame.seq} {rgb.mean():.0f} {rgb.shape[0]} {rgb.shape[1]}\n")
                    intake.ledgers[name].publish()


main()
