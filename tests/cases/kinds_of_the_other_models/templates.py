from swift.template import TemplateMeta, register_template

register_template(TemplateMeta("mine", [], ["{{QUERY}}"], None))
