"""Is a text about a concept? A judge that learned it from labelled texts, not from any model here.

Words and pairs of words, weighed by how rare they are, and one logistic regression per topic
(scikit-learn). It knows nothing of the hosted model, its features or its tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from evaluation.errors import NothingToJudge


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A text, and the topics that it is about; none for a text about nothing in particular."""

    text: str
    topics: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class TopicJudge:
    """Says for a text how probable each topic is.

    Attributes:
        topics: Their names, in the order of the columns.
        words: Text to weighed words.
        classifier: Weighed words to probabilities.
    """

    topics: tuple[str, ...]
    words: TfidfVectorizer
    classifier: Any

    @classmethod
    def trained(cls, texts: Sequence[Labelled], *, seed: int = 0) -> "TopicJudge":
        """Learn from texts.

        Raises:
            NothingToJudge: No text has a topic.
        """
        topics = tuple(sorted({topic for text in texts for topic in text.topics}))
        if not topics:
            raise NothingToJudge
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        seen = words.fit_transform([text.text for text in texts])
        classifier = OneVsRestClassifier(LogisticRegression(C=30.0, random_state=seed))
        classifier.fit(seen, _marks(texts, topics))
        return cls(topics=topics, words=words, classifier=classifier)

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, "texts topics"]:
        """P(the text is about the topic), each topic by itself: a row need not sum to 1."""
        return np.asarray(self.classifier.predict_proba(self.words.transform(texts)))

    def column(self, topic: str) -> int:
        """Where a topic stands; ValueError for one that was not learned."""
        return self.topics.index(topic)

    def measured(self, texts: Sequence[Labelled]) -> dict[str, float]:
        """How right it is about other texts: recall on those of a topic, false alarms on others."""
        present = self.probabilities([text.text for text in texts]) >= PRESENT
        marks = _marks(texts, self.topics).astype(bool)
        return {
            "recall": float(present[marks].mean()),
            "false_alarms": float(present[~marks].mean()),
        }


PRESENT = 0.5
"""The probability from which a topic counts as present."""


def _marks(texts: Sequence[Labelled], topics: Sequence[str]) -> np.ndarray:
    return np.array([[topic in text.topics for topic in topics] for text in texts], dtype=int)
