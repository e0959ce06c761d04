"""Score TextVQA answers with the field's command line; the numbers come from vlm_pruner.scoring.textvqa.

    python -m llava.eval.eval_textvqa --annotation-file textvqa/TextVQA_0.5.1_val.json \\
        --result-file textvqa/answers/llava-v1.5-7b.jsonl
"""

import sys

from vlm_pruner.llava.eval.scoring_command import command, data

main = command("eval_textvqa", "textvqa", __doc__, data("--annotation-file", "TextVQA_0.5.1_val.json"))

if __name__ == "__main__":
    sys.exit(main())
