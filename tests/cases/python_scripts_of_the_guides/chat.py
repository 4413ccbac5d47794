from swift.llm import get_model_tokenizer, get_template, inference, ModelType, get_default_template_type
from swift.utils import seed_everything

model_type = ModelType.qwen_7b_chat
template_type = get_default_template_type(model_type)
model, tokenizer = get_model_tokenizer(model_type, model_kwargs={"device_map": "auto"})
template = get_template(template_type, tokenizer)
response, history = inference(model, template, "hello")
