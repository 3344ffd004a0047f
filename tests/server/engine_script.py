"""Run by test_launchers as a user would: `sgl.Engine(schedule_policy="astraea")`; prints each prompt's output ids."""

import json
import sys

import sglang as sgl


def main(model: str, policy: str, prompts: list[str]) -> None:
    engine = sgl.Engine(
        model_path=model,
        schedule_policy=policy,
        max_total_tokens=8192,
        log_level="info",
    )
    params = {"temperature": 0, "max_new_tokens": 12}
    print("OUTPUTS", json.dumps([engine.generate(p, params)["output_ids"] for p in prompts]), flush=True)
    engine.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
