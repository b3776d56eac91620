"""Runs a command on a terminal of so many columns, and prints what stands on the screen at its end.

A bar that is longer than the terminal wraps, and leaves its old lines when it is drawn anew. Fails if a colour is set.

python on_terminal.py COLUMNS PROGRAM ARGUMENT...
"""

import fcntl
import os
import pty
import re
import struct
import sys
import termios

columns, command = int(sys.argv[1]), sys.argv[2:]
ROWS = 40

process, terminal = pty.fork()
if process == 0:
    # The program begins when the terminal has its size.
    sys.stdin.readline()
    os.execvp(command[0], command)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
os.write(terminal, b"\n")

written = b""
while True:
    try:
        piece = os.read(terminal, 65536)
    except OSError:
        break
    if not piece:
        break
    written += piece
code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
text = written.decode()
assert code == 0, f"exit code {code}: {text}"

# A screen that knows what bars use: the cursor up, down and to the left edge, a line cleared, and the end of a line, behind
# which a character goes to the next.
screen, row, column = [[]], 0, 0
for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n", text, re.DOTALL):
    if token.startswith("\x1b["):
        number, kind = token[2:-1], token[-1]
        count = int(number) if number.isdigit() else 1
        if kind == "A":
            row = max(row - count, 0)
        elif kind == "B":
            row += count
        elif kind == "K":
            screen[row] = []
        elif kind == "G":
            column = count - 1
        elif kind == "D":
            column = max(column - count, 0)
        elif kind == "C":
            column += count
        elif kind == "m":
            sys.exit(f"a colour: {token!r}")
        elif kind not in "hl":
            sys.exit(f"what is {token!r}?")
    elif token == "\r":
        column = 0
    elif token == "\n":
        row, column = row + 1, 0
    else:
        if column == columns:
            row, column = row + 1, 0
        while len(screen) <= row:
            screen.append([])
        line = screen[row]
        line.extend(" " * (column + 1 - len(line)))
        line[column] = token
        column += 1
    while len(screen) <= row:
        screen.append([])
print("\n".join("".join(line).rstrip() for line in screen))
