"""The golden file: a model's answers, and everything that is needed to run it again. Plain data, strictly parsed.

Specified field by field in docs/equality.md.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fp8pad.errors import GoldenError
from fp8pad.reading import Reader

FORMAT_VERSION = 1
READER = Reader(GoldenError)

EngineName = Literal["vllm", "transformers"]
Mode = Literal["eager", "compiled"]
Step = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine is to run. Lengths are in tokens; `dtype` "auto" is the model's own."""

    engine: EngineName
    mode: Mode
    dtype: str
    seed: int
    tensor_parallel_size: int
    max_model_len: int
    max_tokens: int
    top_k: int


@dataclass(frozen=True, slots=True)
class Environment:
    """Where an engine ran, which also decides the last bits of an answer."""

    engine_version: str
    torch_version: str
    device: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's greedy answer to one prompt: a token per step, and the top-k logprobs that it was chosen from.

    A step of `logprobs` holds `(token id, logprob)` pairs, the most likely first, including the chosen token.
    """

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[Step, ...]

    def digest(self) -> str:
        """Return the SHA-256 of the prompt, the tokens and every bit of the logprobs."""
        content = [self.prompt_token_ids, self.token_ids, self.logprobs]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return one entry of `answers`, with its digest."""
        return {**asdict(self), "digest": self.digest()}


@dataclass(frozen=True, slots=True)
class GoldenDocument:
    """A golden file. `model` is the name of a folder, for people; `fingerprint` identifies the model.

    `prompts_from` says where the prompts came from, also for people; the prompts themselves are in the answers.
    """

    fp8pad_version: str
    model: str
    fingerprint: str
    settings: Settings
    environment: Environment
    prompts_from: str
    answers: tuple[Answer, ...]

    def to_text(self) -> str:
        """Return the text of the file, one line per prompt, so that a diff shows which answers changed."""
        head = {"format_version": FORMAT_VERSION, **asdict(self)}
        del head["answers"]
        answers = ",\n".join("  " + json.dumps(answer.to_json()) for answer in self.answers)
        return json.dumps(head, indent=1, ensure_ascii=False)[:-2] + f',\n "answers": [\n{answers}\n ]\n}}\n'


def read_text(file: Path, where: str) -> str:
    """Return the text of a file; raises `GoldenError` if it cannot be read, or, saying `where`, is not UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise GoldenError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise GoldenError(f"{where}: not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from error


def parse_document(text: str, file: str) -> GoldenDocument:
    """Parse the text of a golden file; raises `GoldenError` if it is not one, has another version, or was edited."""
    document = READER.parse_json(text, f"{file}: not a golden file")
    if not isinstance(document, dict) or "answers" not in document or "format_version" not in document:
        raise GoldenError(f"{file}: not a golden file: expected an object with format_version and answers")
    golden = READER.read_versioned(GoldenDocument, document, FORMAT_VERSION, file)
    if not golden.answers:
        raise GoldenError(f"{file}: answers: expected at least one")
    for index, answer in enumerate(golden.answers):
        where = f"{file}: answers[{index}]"
        check_answer(answer, golden.settings, where)
        if document["answers"][index].get("digest") != answer.digest():
            raise GoldenError(f"{where}: digest: does not match the answer: the file was changed")
    return golden


def check_answer(answer: Answer, settings: Settings, where: str) -> None:
    """Raise `GoldenError` unless an answer has a prompt, the requested number of tokens, and a step for each."""
    if not answer.prompt_token_ids:
        raise GoldenError(f"{where}: the prompt has no tokens")
    if len(answer.token_ids) != settings.max_tokens or len(answer.logprobs) != settings.max_tokens:
        raise GoldenError(f"{where}: expected {settings.max_tokens} tokens with logprobs, got {len(answer.token_ids)}")
    for token_id, step in zip(answer.token_ids, answer.logprobs, strict=True):
        if token_id not in dict(step):
            raise GoldenError(f"{where}: token {token_id} has no logprob")
