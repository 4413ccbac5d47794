"""The templates read from source, held against the installed ms-swift's own."""

from __future__ import annotations

import pytest

from swift_toolkit.machine import msswift
from swift_toolkit.model.templates import templates


@pytest.mark.slow
def test_the_templates_are_ms_swifts_own() -> None:
    install = msswift.installed()
    msswift.template_api()  # imports ms-swift in half the time
    if install.line == "v4":
        from swift.template.register import TEMPLATE_MAPPING
    else:
        from swift.llm.template.register import TEMPLATE_MAPPING
    found = templates(install)
    assert found.keys() <= TEMPLATE_MAPPING.keys()
    assert len(found) >= 0.98 * len(TEMPLATE_MAPPING)
    for name, template in found.items():
        meta = TEMPLATE_MAPPING[name]
        assert template.agent == (meta.agent_template or ""), name
        end = meta.suffix[-1] if meta.suffix else ""
        assert template.end in ("", end.strip() if isinstance(end, str) else ""), name
        assert template.turn in "".join(one for one in meta.prompt if isinstance(one, str)), name
        assert template.system == meta.support_system, name
        assert template.rounds == meta.support_multi_round, name
        always = meta.is_thinking and not meta.non_thinking_prefix
        assert template.thinking == (meta.thinking_prefix.strip() if always else ""), name
        begins = ["bos_token_id"] in meta.prefix  # 3.12 removes it from a prefix with a system prompt
        assert template.needs_begin == begins or (install.line == "v3" and template.needs_begin), name
    assert sum(bool(template.end) for template in found.values()) > len(found) / 2
