"""Descriptions that weight files carry in their metadata, as JSON with a format version."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import PFStorerError, first_line

Description = TypeVar("Description")


@dataclass(frozen=True)
class DescribedKind:
    """A kind of weight file that says itself what it holds.

    Args:
        key: of the description in the metadata.
        version: newest format version that can be read, and that is written.
    """

    key: str
    version: int

    def metadata(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Returns the metadata of a file that these plain values describe."""
        return {self.key: json.dumps({"format_version": self.version, **values})}

    def read(
        self,
        metadata: Mapping[str, str],
        subject: str,
        parse: Callable[[dict[str, Any]], Description],
    ) -> Description | None:
        """Returns what a file says of itself, None where it says nothing of this kind.

        Args:
            metadata: texts by key.
            subject: what the sentence of an error begins with.
            parse: makes the description of its values; may raise whatever a wrong value causes.

        Raises:
            PFStorerError: a damaged description, or one of a newer version.
        """
        if self.key not in metadata:
            return None
        try:
            values = json.loads(metadata[self.key])
            version = values.pop("format_version")
            if type(version) is not int or version < 1:
                raise ValueError("no format version")
            if version <= self.version:
                return parse(values)
        except UnknownKind as error:
            raise PFStorerError(f"{subject} is {error}; update PFStorer.") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PFStorerError(
                f"{subject} describes itself wrongly ({first_line(error).rstrip('.')}); copy or "
                "download it again."
            ) from error
        raise PFStorerError(
            f"{subject} has format version {version}, but this PFStorer reads up to "
            f"{self.version}; update PFStorer."
        )


class UnknownKind(Exception):
    """A description names a family or method that this version does not have."""


def named(kinds: Mapping[str, Description], name: Any, what: str) -> Description:
    """Returns the entry of a name that a description gives.

    Raises:
        UnknownKind: there is none; `what` says what it would be.
    """
    if not isinstance(name, str) or name not in kinds:
        raise UnknownKind(f"of the {what} {name!r}, which this PFStorer does not know")
    return kinds[name]
