"""Between text and tokens, one token for each character or byte; and text that is sent while it grows."""


class Characters:
    """Token i is the i-th character of an alphabet.

    Raises:
        ValueError: a character is there twice, or none at all.
    """

    def __init__(self, alphabet):
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(f"alphabet={alphabet!r}: at least one character, and each once, is needed")
        self.alphabet = alphabet
        self._numbers = {character: number for number, character in enumerate(alphabet)}

    @property
    def vocabulary(self):
        return len(self.alphabet)

    def encode(self, text):
        """The tokens of `text`: a list.

        Raises:
            ValueError: a character is not in the alphabet.
        """
        for place, character in enumerate(text):
            if character not in self._numbers:
                raise ValueError(f"character {character!r} at place {place}: this model knows {self.alphabet!r}")
        return [self._numbers[character] for character in text]

    def decode(self, tokens):
        return "".join([self.alphabet[token] for token in tokens])


class Bytes:
    """Token i is byte i of the text in UTF-8: any text will do, and 256 tokens are enough."""

    vocabulary = 256

    def encode(self, text):
        """The bytes of `text`: a list.

        Raises:
            ValueError: it has half a surrogate pair, which UTF-8 does not have.
        """
        return list(text.encode("utf-8"))

    def decode(self, tokens):
        """The text; bytes that are no UTF-8 become U+FFFD."""
        return bytes(tokens).decode("utf-8", errors="replace")


class TextStream:
    """Turns tokens into pieces of text that will not change, and ends at a stop string.

    A piece is held back while a character is incomplete (it decodes to U+FFFD), or while what came last may be the
    beginning of a stop string. All pieces together are the text of all tokens, up to the first stop string.

    Args:
        decode: tokens -> text.
        stop: strings that end the text.

    Attributes:
        text: all pieces so far.
        stopped: whether a stop string came.
    """

    def __init__(self, decode, stop=()):
        self.decode, self.stop = decode, stop
        self.text, self.stopped = "", False
        self._tokens, self._shown, self._held = [], 0, ""

    def push(self, token):
        """Take one token, and give the piece that is certain now, perhaps ""."""
        self._tokens.append(token)
        text = self.decode(self._tokens)
        complete = not text.endswith("\ufffd")
        new = text[self._shown :] if complete else text[self._shown : -1]
        self._shown += len(new)
        if complete:
            self._tokens, self._shown = [], 0
        return self._release(new)

    def end(self):
        """The piece that was held back, once no token follows."""
        rest = self.decode(self._tokens)[self._shown :]
        self._tokens, self._shown = [], 0
        return self._release(rest, last=True)

    def _release(self, new, last=False):
        if self.stopped:
            return ""
        self._held += new
        found = [at for at in map(self._held.find, self.stop) if at >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(self._held) - (0 if last else self._may_begin_a_stop())
        piece, self._held = self._held[:end], self._held[end:]
        self.text += piece
        return piece

    def _may_begin_a_stop(self):
        """How many of the last characters held are the beginning of a stop string."""
        most = min(len(self._held), max(map(len, self.stop), default=1) - 1)
        for length in range(most, 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self.stop):
                return length
        return 0
