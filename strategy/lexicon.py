"""The finance word list of the `hashed` provider: our own, written for this project.

Inflected forms are spelled out in the tables below by stem and endings, so that no stemmer is needed.
"""

from __future__ import annotations

from typing import Final


def _forms(table: str) -> frozenset[str]:
    """Expand "stem:ending,ending" entries; "_" is the bare stem, an entry without a colon is itself."""
    found: set[str] = set()
    for entry in table.split():
        stem, _, endings = entry.partition(":")
        for ending in endings.split(",") if endings else ["_"]:
            found.add(stem if ending == "_" else stem + ending)
    return frozenset(found)


# What goes up or down: good or bad by itself, the other way round next to a burden.
RISING: Final = _forms(
    """
    ris:e,es,ing,en rose grow:_,s,ing,n grew growth climb:_,s,ed,ing increas:e,es,ed,ing jump:_,s,ed,ing
    gain:_,s,ed,ing advanc:e,es,ed,ing higher up expand:_,s,ed,ing expansion surg:e,es,ed,ing
    soar:_,s,ed,ing rall:y,ies,ied,ying doubl:e,es,ed,ing tripl:e,es,ed,ing rais:e,es,ed,ing
    lift:_,s,ed,ing boost:_,s,ed,ing widen:_,s,ed,ing accelerat:e,es,ed,ing
    """
)
FALLING: Final = _forms(
    """
    fall:_,s,ing,en fell drop:_,s,ped,ping declin:e,es,ed,ing decreas:e,es,ed,ing slid slid:e,es,ing
    slump:_,s,ed,ing sink:_,s,ing sank plung:e,es,ed,ing tumbl:e,es,ed,ing lower:_,s,ed,ing down
    shr:ink,inks,ank,unk,inking contract:ed,ing cut:_,s,ting reduc:e,es,ed,ing narrow:_,s,ed,ing
    dwindl:e,es,ed,ing slow:s,ed,ing plummet:_,s,ed,ing eas:es,ed,ing halv:e,es,ed,ing
    """
)
BURDENS: Final = _forms(
    """
    loss:_,es cost:_,s expens:e,es debt:_,s deficit:_,s unemployment inflation liabilit:y,ies
    default:s claim:s write-down:_,s impairment:_,s tax:_,es emissions backlogs churn delinquenc:y,ies
    layoff:_,s outage:_,s defect:_,s
    """
)

_GOOD: Final = _forms(
    """
    approv:al,als,e,es,ed,ing award:_,s,ed beat:_,s,ing benefit:_,s,ed best better bright bullish buoyant
    breakthrough confident exceed:_,s,ed,ing excellent excitement favourable favorable favourite gainer:_,s
    good healthy impressive improv:e,es,ed,ing improvement:_,s innovative lucrative milestone:_,s
    opportunit:y,ies optimis:m,tic outperform:_,s,ed,ing overtak:e,es,ing positive prais:e,es,ed,ing
    profit:_,s profitab:le,ly profitability progress promising prosper:_,s,ed record recover:_,s,ed,ing
    recovery resilient resolv:e,es,ed reward:_,s,ed robust settl:es,ed solid stabilis:e,es,ed strength
    strengthen:_,s,ed,ing strong stronger strongest success:_,es successful successfully superior
    takeover thriv:e,es,ing top:s,ped turnaround upbeat upgrad:e,es,ed,ing upside valuable win:_,s,ning won
    buyback:_,s dividend:_,s ahead delight:_,s,ed exclusive launch:_,es,ed partnership:_,s order:s
    """
)
_BAD: Final = _forms(
    """
    allegation:_,s alleg:e,es,ed bad bankrupt bankruptcy bearish breach:_,es,ed burden:_,s collaps:e,es,ed
    complain:_,s,ed complaint:_,s concern:_,s,ed cris:is,es critic:ise,ises,ised,ize,izes,ized criticism
    damag:e,es,ed danger dangerous deadlock defraud:_,s,ed delay:_,s,ed delist:_,ed,ing deteriorat:e,es,ed,ing
    difficult difficulty disappoint:_,s,ed,ing disappointment disput:e,es,ed disrupt:_,s,ed,ion downbeat
    downgrad:e,es,ed,ing downside downturn fail:_,s,ed,ing failure:_,s fear:_,s,ed fin:ed,es fraud
    fraudulent halt:_,s,ed headwind:_,s hurt:_,s,ing illegal insolven:t,cy investigat:e,es,ed,ion,ions
    lawsuit:_,s layoff:_,s lag:_,s,ged lose:_,s losing lost loss:_,es miss:_,es,ed,ing negative outage:_,s
    panic penalt:y,ies pessimis:m,tic poor poorer poorly probe:_,s problem:_,s recall:_,s,ed recession
    reject:_,s,ed,ing resign:_,s,ed restat:e,es,ed,ement risk:_,s risky scandal:_,s scrap:_,s,ped
    sever:e,ely shortage:_,s shortfall:_,s shutdown:_,s stagnat:e,es,ed strike:_,s struggl:e,es,ed,ing
    sue:_,s,d suffer:_,s,ed,ing suspend:_,s,ed,ing threat:_,s threaten:_,s,ed trouble:_,s,d turmoil
    uncertain uncertainty underperform:_,s,ed unfavourable unfavorable unprofitable victim:_,s violat:e,es,ed
    violation:_,s volatile warn:_,s,ed,ing warning:_,s weak weaker weakness weaken:_,s,ed,ing worse
    worsen:_,s,ed worst wrong crash:_,es,ed default:_,s,ed dismal write-down:_,s impairment:_,s hack:_,ed
    """
)
# Words that carry more than one point.
_HEAVY: Final = _forms(
    "bankrupt bankruptcy collaps:e,es,ed fraud fraudulent crash:_,es,ed scandal:_,s insolven:t,cy"
    " downgrad:e,es,ed,ing miss:_,es,ed"
)
_FINE: Final = _forms("beat:_,s breakthrough record upgrad:e,es,ed,ing excellent exceed:_,s,ed,ing")
# Nouns of finance that say little without what happens to them.
_FAINT: Final = _forms("profit:_,s dividend:_,s order:s launch:_,es,ed risk:_,s takeover partnership:_,s")

VALENCE: Final[dict[str, float]] = {
    word: sign * (1.6 if word in _HEAVY | _FINE else 0.4 if word in _FAINT else 1.0)
    for sign, table in ((1.0, _GOOD), (-1.0, _BAD))
    for word in sorted(table - RISING - FALLING)
}

NEGATIONS: Final = _forms(
    "not no never without neither nor hardly barely unlikely cannot lack:_,s,ed fail:ed,s"
)
INTENSIFIERS: Final = _forms(
    "sharply strongly significantly very highly steeply heavily substantially considerably greatly markedly"
    " dramatically hugely massive massively huge big biggest large"
)
DIMMERS: Final = _forms("slightly somewhat modestly marginally mildly partly slight modest little fairly")
