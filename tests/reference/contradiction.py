"""The ContradictionEngine in plain Python, written from the rules and not from the kernel."""

import math

TABLE = {  # (sentiment, response): (fresh, settled)
    ("+", "up"): ("none", "none"),
    ("+", "flat"): ("underhype", "overhype"),
    ("+", "down"): ("overhype", "overhype"),
    ("0", "up"): ("none", "none"),
    ("0", "flat"): ("none", "none"),
    ("0", "down"): ("none", "none"),
    ("-", "down"): ("none", "none"),
    ("-", "flat"): ("overhype", "underhype"),
    ("-", "up"): ("underhype", "underhype"),
}


def enter_or_stay(before, value, k, leave=0.7):
    """Enter a class at k (the tie counts as inside), leave it below 0.7 k."""
    if value >= k or (before == 1 and value >= leave * k):
        return 1
    if value <= -k or (before == -1 and value <= -leave * k):
        return -1
    return 0


class Engine:
    """One symbol; every mid ever seen is kept."""

    def __init__(self, **parameters):
        self.p = {
            "k_s": 1.0, "k_r": 1.0, "react": 60.0, "expire": 14_400.0, "window": 300.0, "time_min": 1.0,
            "dwell": 1.0, "history_min": 1, "settled_flat": True,
        } | parameters  # fmt: skip
        self.mids, self.item, self.reference = [], 0, None
        self.classes, self.tag, self.changed = [0, 0, 0], "none", -math.inf

    def mid_at(self, t):
        """Return the mid in force at t, or the oldest."""
        before = [mid for at, mid in self.mids if at <= t]
        return before[-1] if before else self.mids[0][1]

    def step(self, now, mid, spread, sigma, news=None):
        """news: (item, received, material, z, half_life); times in seconds.  Return the tag."""
        p, verdict = self.p, "none"
        visible = news is not None and max(news[1], news[2]) <= now and now - news[2] <= p["expire"]
        if visible and news[0] != self.item:
            self.item = news[0]
            self.reference = self.mids[-1][1] if self.mids else mid
        self.mids.append((now, mid))
        if len(self.mids) >= p["history_min"]:
            floor = spread / 2 / mid
            age = now - news[2] if news else math.inf

            def response(then, dt):
                return math.log(mid / then) / max(sigma * math.sqrt(max(dt, p["time_min"])), floor)

            z = news[3] * 0.5 ** ((now - news[1]) / news[4]) if visible else 0.0
            recent = response(self.mid_at(now - p["window"]), p["window"])
            whole = recent
            if visible:
                whole = response(self.reference, age)
                recent = whole if age <= p["window"] else recent
            values = zip(self.classes, (z, recent, whole), (p["k_s"], p["k_r"], p["k_r"]), strict=True)
            self.classes = [enter_or_stay(*v) for v in values]
            sentiment, recent_class, whole_class = self.classes
            answer = recent_class or whole_class
            key = ("0+-"[sentiment], {1: "up", 0: "flat", -1: "down"}[answer])
            verdict = TABLE[key][age > p["react"]]
            if key[1] == "flat" and age > p["react"] and not p["settled_flat"]:
                verdict = "none"
        if verdict != self.tag and now - self.changed >= p["dwell"]:
            self.tag, self.changed = verdict, now
        return self.tag
