try:
    from swift.template import TemplateMeta, register_template
except ImportError:  # ms-swift 3
    from swift.llm import TemplateMeta, register_template

register_template(TemplateMeta("mine", [], ["{{QUERY}}"], None))
