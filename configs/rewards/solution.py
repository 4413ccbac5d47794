"""The reward of configs/grpo.json: 1 for an answer that is the solution alone, 0.5 if it is in the answer, else 0.

ms-swift imports this file (`external_plugins`) and finds the function under the name given to `reward_funcs`.
"""

import re

try:
    from swift.rewards import ORM, orms
except ModuleNotFoundError:  # ms-swift 3
    from swift.plugin import ORM, orms


class Solution(ORM):
    """Compares each completion with the row's column ``solution``."""

    def __call__(self, completions, solution, **columns):
        numbers = [re.findall(r"\d+", completion) for completion in completions]
        return [
            1.0 if found == [right] else 0.5 if right in found else 0.0
            for found, right in zip(numbers, solution, strict=True)
        ]


orms["solution"] = Solution
