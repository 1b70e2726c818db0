"""Checks of what a corpus of folders holds: mistakes that would otherwise cost hours, or a language."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pipeline.corpus.layouts.files import extension
from pipeline.corpus.layouts.protocol import Recording
from pipeline.errors import UsageError, few
from pipeline.schema import label_of_folder

UNREAD_AUDIO: Final = frozenset({
    ".3ga", ".3gp", ".3gpp", ".aac", ".ac3", ".alac", ".amr", ".ape", ".avi", ".awb", ".dss", ".dts", ".flv", ".gsm",
    ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp4", ".mpc", ".mpeg", ".mpg", ".ogv", ".pcm", ".qcp",
    ".ra", ".raw", ".shn", ".spx", ".tak", ".tta", ".vox", ".weba", ".webm", ".wma", ".wmv", ".wv",
    ".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".txz", ".xz", ".zip", ".zst",
})  # fmt: skip
"""Extensions of audio, of video and of archives that are not read: a folder of such files alone is a language."""
SPLIT_NAMES: Final = frozenset({
    "dev", "development", "eval", "evaluation", "test", "testing", "train", "training", "val", "valid", "validated",
    "validation",
})  # fmt: skip
NO_SPEAKERS: Final = SPLIT_NAMES | {
    "audio", "audios", "clips", "flac", "mp3", "ogg", "opus", "recordings", "sounds", "utterances", "wav", "wavs",
    "invalidated", "other",
}  # fmt: skip
"""Names of folders that well-known corpora have below a language, and that are no speakers."""
LANGUAGES: Final = frozenset({
    "ab", "aa", "af", "ak", "sq", "am", "ar", "an", "hy", "as", "av", "ae", "ay", "az", "bm", "ba", "eu", "be",
    "bn", "bi", "bs", "br", "bg", "my", "ca", "ch", "ce", "ny", "zh", "cv", "kw", "co", "cr", "hr", "cs", "da",
    "dv", "nl", "dz", "en", "eo", "et", "ee", "fo", "fj", "fi", "fr", "ff", "gl", "ka", "de", "el", "gn", "gu",
    "ht", "ha", "he", "hz", "hi", "ho", "hu", "ia", "id", "ie", "ga", "ig", "ik", "io", "is", "it", "iu", "ja",
    "jv", "kl", "kn", "kr", "ks", "kk", "km", "ki", "rw", "ky", "kv", "kg", "ko", "ku", "kj", "la", "lb", "lg",
    "li", "ln", "lo", "lt", "lu", "lv", "gv", "mk", "mg", "ms", "ml", "mt", "mi", "mr", "mh", "mn", "na", "nv",
    "nd", "ne", "ng", "nb", "nn", "no", "ii", "nr", "oc", "oj", "cu", "om", "or", "os", "pa", "pi", "fa", "pl",
    "ps", "pt", "qu", "rm", "rn", "ro", "ru", "sa", "sc", "sd", "se", "sm", "sg", "sr", "gd", "sn", "si", "sk",
    "sl", "so", "st", "es", "su", "sw", "ss", "sv", "ta", "te", "tg", "th", "ti", "bo", "tk", "tl", "tn", "to",
    "tr", "ts", "tt", "tw", "ty", "ug", "uk", "ur", "uz", "ve", "vi", "vo", "wa", "cy", "wo", "fy", "xh", "yi",
    "yo", "za", "zu", "ara", "ben", "ces", "chi", "cmn", "deu", "dut", "ell", "eng", "fas", "fra", "fre", "ger",
    "heb", "hin", "hun", "ind", "ita", "jpn", "kor", "nld", "pol", "por", "ron", "rus", "spa", "swe", "tam", "tel",
    "tha", "tur", "ukr", "urd", "vie", "zho", "arabic", "bengali", "chinese", "czech", "dutch", "english", "french",
    "german", "greek", "hebrew", "hindi", "hungarian", "indonesian", "italian", "japanese", "korean", "mandarin",
    "persian", "polish", "portuguese", "romanian", "russian", "spanish", "swahili", "swedish", "tamil", "telugu",
    "thai", "turkish", "ukrainian", "urdu", "vietnamese",
})  # fmt: skip
"""Codes of ISO 639-1, and codes and English names of the most spoken languages."""


@dataclass
class Contents:
    """What lies in a corpus.

    `top` are the folders right below it, `labels` the labels of those that hold a recording, `speakers` the names of
    each label, and `extensions` the number of files of each extension in the folders that hold none.
    """

    top: set[str] = field(default_factory=set)
    labels: dict[str, str] = field(default_factory=dict)
    speakers: defaultdict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))
    extensions: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, folder: str, recording: Recording) -> None:
        """Add a recording in the language folder `folder`."""
        if folder not in self.labels:
            self.labels[folder] = recording.label
            self.extensions.pop(folder, None)
        self.speakers[recording.label].add(recording.speaker)

    def unread(self, path: str) -> None:
        """Add a file that is not read."""
        folder, below, _ = path.partition("/")
        if below and folder not in self.labels:
            self.extensions[folder][extension(path)] += 1

    def empty(self) -> list[str]:
        """Return the folders that hold no file at all."""
        return sorted(self.top - self.labels.keys() - self.extensions.keys())

    def check(self, corpus: str) -> None:
        """Raise UsageError for languages that would be lost, labels that look alike, and folders in another order."""
        for look in (
            self._same_label,
            self._unread,
            self._look_alike,
            self._of_splits,
            self._without_speakers,
            self._of_speakers,
        ):
            problem = look()
            if problem:
                raise UsageError(f"--corpus {corpus}: {problem}")

    def _same_label(self) -> str | None:
        known: dict[str, str] = {}
        for label, folder in sorted((label, folder) for folder, label in self.labels.items()):
            other = known.setdefault(label, folder)
            if other != folder:
                return f"the folders {other!r} and {folder!r} both give the label {label!r}; rename one"
        return None

    def _unread(self) -> str | None:
        """Return which folders hold audio of other formats alone."""
        for folder, found in sorted(self.extensions.items()):
            if not UNREAD_AUDIO.isdisjoint(found):
                return (
                    f"nothing is read of the language {folder!r}: {extensions_text(found)}; convert its recordings "
                    "to FLAC or WAV, unpack archives, or move the folder out of the corpus"
                )
        return None

    def _look_alike(self) -> str | None:
        """Return labels that differ only in case or Unicode form, or speakers that differ only in Unicode form."""
        speakers = {name for names in self.speakers.values() for name in names if name and not name.isascii()}
        return _alike("languages", self.labels, _folded) or _alike("speakers", speakers, _composed)

    def _of_splits(self) -> str | None:
        """Return labels that are names of splits: SPLIT/LANGUAGE."""
        splits = sorted(label for label in self.speakers if _base(label) in SPLIT_NAMES)
        if len(splits) < 2:  # noqa: PLR2004 one language may be called so
            return None
        return (
            f"the folders {few(splits)} look like splits, but each would be a language; make it LANGUAGE/SPEAKER/file "
            "(the pipeline splits by speaker itself), or name one of these folders as the corpus"
        )

    def _without_speakers(self) -> str | None:
        """Return languages whose recordings all lie in folders that are no speakers: LANGUAGE/clips."""
        remedy = (
            "put each speaker's recordings into a folder LANGUAGE/SPEAKER, or, if the speakers are unknown, right "
            "into LANGUAGE"
        )
        names = {label: sorted(str(name) for name in found if name) for label, found in self.speakers.items()}
        apart = {label for label, found in self.speakers.items() if None not in found}
        unnamed = sorted(label for label in apart if all(_base(name) in NO_SPEAKERS for name in names[label]))
        if unnamed:
            folders = sorted({name for label in unnamed for name in names[label]})
            return (
                f"{few(unnamed)}: all recordings lie in {few([repr(name) for name in folders])}, but a folder below "
                f"a language is a speaker; {remedy}"
            )
        single = {tuple(found) for found in names.values()}
        if apart == set(names) and len(names) > 1 and len(single) == 1 and len(*single) == 1:
            return (
                f"{few(sorted(names))}: all recordings of every language lie in a folder {names[min(names)][0]!r}, "
                f"which would be one speaker, so nothing could be tested; {remedy}"
            )
        return None

    def _of_speakers(self) -> str | None:
        """Return labels that are speakers: SPEAKER/LANGUAGE. The same languages lie below all of them."""
        below = [{str(name) for name in found if name} for found in self.speakers.values()]
        common = set.intersection(*below) if below else set()
        languages = {name for name in set().union(*below) if _is_language(name)}
        swapped = common and common == languages == set().union(*below)
        if not swapped or any(_is_language(label) for label in self.speakers):
            return None
        return (
            f"below each of {few(sorted(self.speakers))} lie {few(sorted(common))}, which look like languages, but "
            "would be speakers; swap the two levels: LANGUAGE/SPEAKER/file"
        )


def extensions_text(found: Mapping[str, int]) -> str:
    """Return how many files there are of each extension, most first: "412 .m4a, 3 .txt, 1 without extension"."""
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return few([f"{number} {name or 'without extension'}" for name, number in ordered], 5)


def _alike(what: str, names: Iterable[str], key: Callable[[str], str]) -> str | None:
    """Return that two of `names` have the same `key`, if they do; names are escaped where they look the same."""
    known: dict[str, str] = {}
    for name in sorted(names):
        other = known.setdefault(key(name), name)
        if other != name:
            return (
                f"the {what} {other!a} and {name!a} differ only in case or Unicode form and would be two; rename one"
            )
    return None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _composed(label_of_folder(name)).casefold()


def _base(name: str) -> str:
    """Return the first word of a name in lower case: train of train-clean-100."""
    return name.casefold().replace("_", "-").partition("-")[0]


def _is_language(name: str) -> bool:
    """Whether a name is a language's, or a code with a script or region: pt_BR, zh-Hans."""
    return _base(name) in LANGUAGES
