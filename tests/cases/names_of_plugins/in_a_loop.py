try:
    from swift.rewards import ORM, orms
except ImportError:  # ms-swift 3
    from swift.plugin import ORM, orms


class Brevity(ORM):
    def __call__(self, completions, **kwargs):
        return [1 / (1 + len(text)) for text in completions]


for name in ("short", "very_short"):
    orms[name] = Brevity
