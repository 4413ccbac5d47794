from swift.llm import export_main, ExportArguments

export_main(ExportArguments(adapters="out/ck", merge_lora=True))
