"""Looking after the log: topics, and the records that could not be read."""

from __future__ import annotations

from typing import Annotated

import typer

from millrace.cli_options import ConfigOption, JsonOption, SetOption, print_json
from millrace.cli_parts import log_to_write
from millrace.connections import log_address
from millrace.settings import load_settings
from schemas.times import to_iso

topics_app = typer.Typer(help="The topics of the log, as declared in schemas/topics.py.", no_args_is_help=True)
dlq_app = typer.Typer(help="Dead letters: records that could not be read.", no_args_is_help=True)


@topics_app.command(epilog="Example: millrace topics apply --set log.bootstrap_servers=kafka:9092")
def apply(config: ConfigOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Make the topics that are missing, and set what differs. Never changes a number of partitions."""
    from eventlog.kafka_log import KafkaLog
    from eventlog.kafka_topics import topics_apply
    from eventlog.open_log import open_log
    from schemas.topics import TOPICS

    settings = load_settings(config, set_ or ())
    prefix = settings.log.topic_prefix
    with open_log(log_to_write(settings)) as log:
        if isinstance(log, KafkaLog):
            done = topics_apply(log, prefix)
        else:
            done = [f"{name}: created" for name in log.ensure_topics(list(TOPICS.values()), prefix)]
    if as_json:
        print_json(done)
    else:
        typer.echo("\n".join(done) or "all topics are as declared")


@topics_app.command(epilog="Example: millrace topics diff --json")
def diff(config: ConfigOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Compare the topics with what is declared. Exits with 1 on any difference."""
    from eventlog.kafka_log import KafkaLog
    from eventlog.kafka_topics import topics_diff
    from eventlog.open_log import open_log
    from schemas.errors import UnknownTopicError
    from schemas.topics import TOPICS

    settings = load_settings(config, set_ or ())
    prefix = settings.log.topic_prefix
    with open_log(log_address(settings)) as log:
        if isinstance(log, KafkaLog):
            lines = topics_diff(log, prefix)
        else:
            lines = []
            for topic in TOPICS.values():
                try:
                    log.topic(topic.name(prefix))
                except UnknownTopicError:
                    lines.append(f"{topic.name(prefix)}: missing")
    if as_json:
        print_json(lines)
    else:
        typer.echo("\n".join(lines) or "all topics are as declared")
    raise typer.Exit(1 if lines else 0)


@dlq_app.command("list", epilog="Example: millrace dlq list --json")
def list_(config: ConfigOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """List the dead letters that the log holds, oldest first."""
    from analytics.names import Answer
    from consumers.dead_letter_queue import dead_letters
    from eventlog.open_log import open_log
    from millrace.report import console, print_answer

    settings = load_settings(config, set_ or ())
    with open_log(log_address(settings)) as log:
        rows = [
            (
                letter.number,
                to_iso(letter.published_at),
                f"{letter.topic}/{letter.partition}@{letter.offset}",
                letter.event_type,
                letter.size,
                letter.error,
            )
            for letter in dead_letters(log, settings.log.topic_prefix)
        ]
    answer = Answer(("number", "published_at", "source", "event_type", "bytes", "error"), list(rows))
    if as_json:
        print_json(answer.dicts())
    else:
        print_answer(console(), answer)


@dlq_app.command(epilog="Example: millrace dlq show 3")
def show(
    number: Annotated[int, typer.Argument(help="Of the letter, as `millrace dlq list` shows it.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print one dead letter: what was wrong, its headers, and its value as it came."""
    from consumers.dead_letter_queue import dead_letters, pick
    from eventlog.open_log import open_log

    settings = load_settings(config, set_ or ())
    with open_log(log_address(settings)) as log:
        [letter] = pick(dead_letters(log, settings.log.topic_prefix), [number])
    headers = [(name, value.decode(errors="backslashreplace")) for name, value in letter.record.headers]
    shown = {
        "source": f"{letter.topic}/{letter.partition}@{letter.offset}",
        "error": letter.error,
        "key": letter.record.key.decode(errors="backslashreplace"),
        "headers": headers,
        "value": letter.record.value.decode(errors="backslashreplace"),
    }
    if as_json:
        print_json(shown)
        return
    lines = [(name, value) for name, value in shown.items() if name not in ("headers", "value")]
    lines += [("header", f"{name}: {text}") for name, text in headers]
    for name, value in (*lines, ("value", shown["value"])):
        typer.echo(f"{name:<8} {value}")


@dlq_app.command(epilog="Example: millrace dlq replay 3 4, or: millrace dlq replay --all")
def replay(
    numbers: Annotated[
        list[int] | None, typer.Argument(help="Of the letters, as `millrace dlq list` shows them.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every letter.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters back to the topics that they came from, as they were. What is stored already stays as it is."""
    from consumers.dead_letter_queue import dead_letters, pick, send_back
    from eventlog.open_log import open_log
    from schemas.errors import InputError

    if bool(numbers) == all_:
        raise InputError("dlq replay: expected numbers of letters, or --all; `millrace dlq list` shows them")
    settings = load_settings(config, set_ or ())
    with open_log(log_address(settings)) as log:
        letters = list(dead_letters(log, settings.log.topic_prefix))
        sent = send_back(log, letters if all_ else pick(letters, numbers or []))
    if as_json:
        print_json({"sent": sent})
    else:
        typer.echo(f"sent {sent} record{'' if sent == 1 else 's'} back")
