"""Ask about a picture, plainly and back-patched, with the OpenAI client and with ours.

Asked of a running service (`TILLER_URL`, `OPENAI_BASE_URL`); docs/vision-language.md explains it.
"""

import base64
import io

from openai import OpenAI

from miniature.sight.tasks import some
from service.client import Tiller

MODEL = "miniature-vl"


def main() -> None:
    """Show a picture of the miniature's world and ask how many things are in it."""
    [item] = some("counting", "held-out", 1)
    buffer = io.BytesIO()
    item.picture.save(buffer, "PNG")
    photo = buffer.getvalue()
    print(item.question, "--", item.answer)

    encoded = base64.b64encode(photo).decode()
    said = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "text", "text": item.question},
    ]
    answer = OpenAI(api_key="unused").chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": said}],
        temperature=0,
        extra_body={"backpatch": {"source": 9, "target": 2, "window": 3}, "compare": True},
    )
    told = answer.model_extra["tiller"]
    print("back-patched:", answer.choices[0].message.content, told["backpatch"]["pairs"])
    print("plain:", told["plain"][0]["message"]["content"])

    with Tiller() as tiller:
        tiller.presets.put("shown", backpatch={"source": 9, "target": 2}, model=MODEL)
        [seen] = tiller.see(photo, item.question, backpatch="shown@1", temperature=0)
    print("by its name:", seen.text, seen.tiller["backpatch"]["preset"]["version"])


if __name__ == "__main__":
    main()
