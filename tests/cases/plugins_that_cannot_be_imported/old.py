from swift.plugin import ORM, orms


class Length(ORM):
    def __call__(self, completions, **kwargs):
        return [float(len(text)) for text in completions]


orms["length"] = Length
