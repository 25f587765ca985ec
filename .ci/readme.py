"""
Prints what README.md says to run, as it is written:

    python .ci/readme.py command N    # the Nth of its "Two commands"
    python .ci/readme.py python       # its Python snippets, one after the other
    python .ci/readme.py onnx         # the commands that make ONNX files and serve them
"""

import re
import sys
from pathlib import Path


text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
bash = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
if sys.argv[1] == "command":
    print(bash[int(sys.argv[2]) - 1])
elif sys.argv[1] == "python":
    print("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
else:
    print(next(block for block in bash if "--onnx" in block))
