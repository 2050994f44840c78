"""One instruction of PTX as C++.

A register is an unsigned integer of its width, a type is how an instruction reads it.  What is not known here
raises NotImplementedError: nothing is skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

WIDTH: Final = {
    **{f"{kind}{bits}": bits for kind in "usb" for bits in (8, 16, 32, 64)}, "f32": 32, "f64": 64, "pred": 1,
}  # fmt: skip
SPECIAL: Final = {
    "%tid.x": "thread", "%tid.y": "0u", "%tid.z": "0u", "%laneid": "thread % 32", "WARP_SZ": "32u",
    "%ntid.x": "C->block_dim.x", "%ntid.y": "1u", "%ntid.z": "1u",
    "%ctaid.x": "C->block_id.x", "%ctaid.y": "C->block_id.y", "%ctaid.z": "0u",
    "%nctaid.x": "C->grid_dim.x", "%nctaid.y": "C->grid_dim.y", "%nctaid.z": "1u",
}  # fmt: skip
COMPARE: Final = {
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "lo": "<", "ls": "<=", "hi": ">", "hs": ">=",
}  # fmt: skip
UNORDERED: Final = {"equ": "==", "neu": "!=", "ltu": "<", "leu": "<=", "gtu": ">", "geu": ">="}


@dataclass(slots=True)
class Kernel:
    """One kernel: its parameters as (type, name) and its C++."""

    name: str
    parameters: list[tuple[str, str]]
    code: str = ""
    static_shared: int = 0
    widths: dict[str, int] = field(default_factory=dict)  # register prefix -> bits
    shared: dict[str, int] = field(default_factory=dict)  # symbol -> offset

    def width_of(self, register: str) -> int:
        return self.widths[re.sub(r"\d+$", "", register)]


def unsigned(kind: str) -> str:
    return f"u{WIDTH[kind]}"


def operand(kernel: Kernel, text: str, kind: str) -> str:
    """Return a C++ expression of type `kind`."""
    text = text.strip()
    text = text.removesuffix("U")
    if text.startswith("!"):
        return f"!{operand(kernel, text[1:], kind)}"
    if text in SPECIAL:
        return f"({kind})({SPECIAL[text]})"
    if text.startswith("%"):
        return f"R{text[1:]}" if kind == "pred" else f"as<{kind}>(R{text[1:]})"
    if text.startswith("0f"):
        return f"as<{kind}>(0x{text[2:]}u)"
    if text.startswith("0d"):
        return f"as<{kind}>((u64)0x{text[2:]}ull)"
    if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)", text):
        if kind == "pred":
            return "false" if int(text, 0) == 0 else "true"
        suffix = "ull" if not text.startswith("-") else "ll"
        text = text if text != "-9223372036854775808" else "(-9223372036854775807-1)"
        return f"({kind}){text}{suffix if text[0] != '(' else ''}"
    if text in kernel.shared:
        return f"({kind})(emulator::SHARED_BASE + {kernel.shared[text]})"
    msg = f"operand {text!r}"
    raise NotImplementedError(msg)


def assign(kernel: Kernel, register: str, expression: str, kind: str) -> str:
    """Return C++ that sets a register to a value of type `kind`."""
    name = register.strip().removeprefix("%")
    if name == "_":
        return f"(void)({expression});"
    width = kernel.width_of(name)
    if width == 1:
        return f"R{name} = {expression};"
    return f"R{name} = put<u{width}, {kind}>(({kind})({expression}));"


def address(kernel: Kernel, text: str, space: str) -> str:
    match = re.fullmatch(r"\[\s*([^+\]\s]+)\s*(?:\+\s*(-?\d+))?\s*\]", text.strip())
    if not match:
        msg = f"address {text!r}"
        raise NotImplementedError(msg)
    base, offset = match[1], match[2] or "0"
    kind = "u64"
    if base.startswith("%") and kernel.width_of(base[1:]) == 32:
        kind = "u32"
    window = "emulator::SHARED_WINDOW + " if space == "shared" else ""
    return f"{window}(u64){operand(kernel, base, kind)} + ({offset}ll)"


def _vector(text: str) -> list[str]:
    return [part.strip() for part in text.strip().strip("{}").split(",")]


def _access(kernel: Kernel, parts: list[str], where: str, at: str, *, store: bool) -> tuple[str, str, int]:
    """Return C++ for the checked address, the element type and the element count."""
    kind, words = parts[-1], set(parts)
    space = next((p for p in parts if p.split("::")[0] in {"global", "shared", "local", "const"}), "generic")
    if space.split("::")[0] not in {"global", "shared", "generic"}:
        msg = f"{space} memory"
        raise NotImplementedError(msg)
    count = 4 if "v4" in words else 2 if "v2" in words else 1
    strong = words & {"volatile", "acquire", "release", "relaxed"}
    if store:
        mode = "STRONG_WRITE" if strong else "WRITE"
    else:
        mode = "STRONG_READ" if strong else "CONSTANT_READ" if "nc" in words else "READ"
    size = count * WIDTH[kind] // 8
    code = (
        f"char* at = emulator_access(C, {address(kernel, at, space.split('::')[0])}, {size}, "
        f"emulator::{mode}, {where});"
    )
    return code, kind, count


def load(kernel: Kernel, parts: list[str], args: list[str], where: str) -> str:
    if parts[1] == "param":
        name = args[1].strip("[] ")
        return assign(kernel, args[0], f"as<{parts[-1]}>({name})", parts[-1])
    code, kind, count = _access(kernel, parts, where, args[1], store=False)
    targets = _vector(args[0]) if count > 1 else [args[0]]
    order = "__ATOMIC_ACQUIRE" if "acquire" in parts else "__ATOMIC_RELAXED"
    whole = f"__atomic_load_n(({unsigned(kind)}*)at + {{n}}, {order})"
    values = [assign(kernel, t, f"as<{kind}>({whole.format(n=n)})", kind) for n, t in enumerate(targets)]
    return "{ " + code + " " + " ".join(values) + " }"


def store(kernel: Kernel, parts: list[str], args: list[str], where: str) -> str:
    code, kind, count = _access(kernel, parts, where, args[0], store=True)
    sources = _vector(args[1]) if count > 1 else [args[1]]
    order = "__ATOMIC_RELEASE" if "release" in parts else "__ATOMIC_RELAXED"
    bits = unsigned(kind)
    values = [
        f"__atomic_store_n(({bits}*)at + {n}, as<{bits}>({operand(kernel, s, kind)}), {order});"
        for n, s in enumerate(sources)
    ]
    return "{ " + code + " " + " ".join(values) + " }"


def atomic(kernel: Kernel, parts: list[str], args: list[str], where: str) -> str:
    kind = parts[-1]
    at, value = (args[1], args[2]) if parts[0] == "atom" else (args[0], args[1])
    if "add" not in parts or kind[0] == "f":
        msg = ".".join(parts)
        raise NotImplementedError(msg)
    space = "shared" if "shared" in parts else "global"
    added = operand(kernel, value, kind)
    code = (
        f"char* at = emulator_access(C, {address(kernel, at, space)}, {WIDTH[kind] // 8}, "
        f"emulator::ATOMIC, {where}); {kind} old = *({kind}*)at; *({kind}*)at = old + {added};"
    )
    return "{ " + code + (assign(kernel, args[0], "old", kind) if parts[0] == "atom" else "") + " }"


def shuffle(kernel: Kernel, parts: list[str], args: list[str], where: str) -> str:
    target, _, inside = args[0].partition("|")
    mode, operand_, control, mask = parts[2][0], args[2], args[3], args[4]
    code = (
        f"bool inside; u32 source = shuffle_source('{mode}', thread % 32, "
        f"{operand(kernel, operand_, 'u32')}, {operand(kernel, control, 'u32')}, &inside); "
        f"u32 got = emulator_collective(C, emulator::SHUFFLE, "
        f"{operand(kernel, mask, 'u32')}, {operand(kernel, args[1], 'u32')}, source, {where}); "
    )
    code += assign(kernel, target, "got", "b32")
    return "{ " + code + (assign(kernel, inside, "inside", "pred") if inside else "") + " }"


def vote(kernel: Kernel, parts: list[str], args: list[str], where: str) -> str:
    mask = operand(kernel, args[2], "u32")
    votes = (
        f"u32 mask = {mask}; u32 votes = (u32)emulator_collective(C, emulator::BALLOT, mask, "
        f"{operand(kernel, args[1], 'pred')}, 0, {where}); "
    )
    how = {"ballot": "votes", "any": "votes != 0", "all": "votes == mask"}[parts[2]]
    return "{ " + votes + assign(kernel, args[0], how, parts[-1]) + " }"


def move(kernel: Kernel, parts: list[str], args: list[str]) -> str:
    kind = parts[1]
    if args[1].startswith("{"):
        low, high = _vector(args[1])
        half = f"u{WIDTH[kind] // 2}"
        low, high = operand(kernel, low, half), operand(kernel, high, half)
        joined = f"({kind}){low} | ({kind}){high} << {WIDTH[kind] // 2}"
        return assign(kernel, args[0], joined, kind)
    if args[0].startswith("{"):
        half = f"u{WIDTH[kind] // 2}"
        value = operand(kernel, args[1], kind)
        parts_ = [f"({half})whole", f"({half})(whole >> {WIDTH[kind] // 2})"]
        sets = [assign(kernel, t, e, half) for t, e in zip(_vector(args[0]), parts_, strict=True)]
        return f"{{ {kind} whole = {value}; {' '.join(sets)} }}"
    return assign(kernel, args[0], operand(kernel, args[1], kind), kind)


def compare(kernel: Kernel, parts: list[str], args: list[str]) -> str:
    how, kind = parts[1], parts[-1]
    a, b = operand(kernel, args[1], kind), operand(kernel, args[2], kind)
    nan = f"({a} != {a} || {b} != {b})"
    if how in UNORDERED:
        test = f"{nan} || {a} {UNORDERED[how]} {b}"
    elif how in {"num", "nan"}:
        test = nan if how == "nan" else f"!{nan}"
    elif how == "ne" and kind[0] == "f":
        test = f"!{nan} && {a} != {b}"
    else:
        test = f"{a} {COMPARE[how]} {b}"
    joint = {"and": "&", "or": "|", "xor": "^"}
    if len(parts) > 3 and parts[2] in joint:
        test = f"({test}) {joint[parts[2]]} {operand(kernel, args[3], 'pred')}"
    target, _, inverse = args[0].partition("|")
    code = assign(kernel, target, f"({test})", "pred")
    return code + (assign(kernel, inverse, f"!({test})", "pred") if inverse else "")


def multiply(kernel: Kernel, parts: list[str], args: list[str]) -> str:
    name, kind = parts[0], parts[-1]
    if kind[0] == "f":
        return assign(
            kernel, args[0], f"{operand(kernel, args[1], kind)} * {operand(kernel, args[2], kind)}", kind
        )
    how, width = parts[1], WIDTH[kind]
    a, b = operand(kernel, args[1], kind), operand(kernel, args[2], kind)
    if how == "wide":
        result = f"{kind[0]}{2 * width}"
        value = f"({result}){a} * ({result}){b}"
    elif how == "hi":
        result, wide = kind, f"{'' if kind[0] == 's' else 'unsigned '}__int128"
        value = f"({kind})((({wide}){a} * ({wide}){b}) >> {width})"
    else:
        result = f"u{width}"
        value = f"({result})((u64){a} * (u64){b})"
    if name == "mad":
        value = f"({value}) + {operand(kernel, args[3], result)}"
    return assign(kernel, args[0], value, result)


ROUND: Final = {"rni": "nearbyint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}


def convert(kernel: Kernel, parts: list[str], args: list[str]) -> str:
    to, source = parts[-2], parts[-1]
    value = operand(kernel, args[1], source)
    rounding = next((ROUND[p] for p in parts if p in ROUND), "")
    if "sat" in parts:
        if to != "f32" or source != "f32":
            msg = ".".join(parts)
            raise NotImplementedError(msg)
        return assign(kernel, args[0], f"saturate({value})", "f32")
    if source[0] == "f" and rounding:
        value = f"{rounding}((f64){value})"
    if to[0] != "f" and source[0] == "f":
        least, most = (
            (f"-{2 ** (WIDTH[to] - 1)}.0", 2 ** (WIDTH[to] - 1) - 1)
            if to[0] == "s"
            else ("0.0", 2 ** WIDTH[to] - 1)
        )
        return assign(kernel, args[0], f"to_integer<{to}>({value}, {least}, {most}.0)", to)
    return assign(kernel, args[0], f"({to}){value}", to)


def logic3(kernel: Kernel, kind: str, args: list[str]) -> str:
    table = int(args[4], 0)
    values = [operand(kernel, a, kind) for a in args[1:4]]
    terms = [
        "(" + " & ".join(v if n >> (2 - k) & 1 else f"~{v}" for k, v in enumerate(values)) + ")"
        for n in range(8)
        if table >> n & 1
    ]
    return assign(kernel, args[0], " | ".join(terms) or f"({kind})0", kind)


# What computes a register from registers: template and type of the result ("" = the instruction's own).  {0}
# is the first source as the instruction's type, {w0} as an unsigned integer of its width, {i0} as u32, {p0}
# as a predicate; {t} is the type, {w} the unsigned one, {n} its bits, {f} the suffix of a C function.
ARITHMETIC: Final = {
    "add": ("{w0} + {w1}", "w"), "sub": ("{w0} - {w1}", "w"),
    "add.f": ("{0} + {1}", ""), "sub.f": ("{0} - {1}", ""),
    "fma": ("__builtin_fma{f}({0}, {1}, {2})", ""), "fma.rm": ("fma_down({0}, {1}, {2})", ""),
    "div": ("divide<{t}>({0}, {1})", ""), "div.f": ("{0} / {1}", ""),
    "rem": ("remainder_of<{t}>({0}, {1})", ""),
    "neg": ("({w})0 - {w0}", "w"), "neg.f": ("-{0}", ""),
    "not": ("~{0}", ""), "not.pred": ("!{0}", ""),
    "abs": ("{0} < 0 ? -{0} : {0}", ""), "abs.f": ("fabs({0})", ""),
    "min": ("smaller<{t}>({0}, {1})", ""), "max": ("greater<{t}>({0}, {1})", ""),
    "shl": ("shift_left<{w}>({w0}, {i1})", "w"), "shr": ("shift_right<{t}>({0}, {i1})", ""),
    "and": ("{0} & {1}", ""), "or": ("{0} | {1}", ""), "xor": ("{0} ^ {1}", ""),
    "selp": ("{p2} ? {0} : {1}", ""), "popc": ("__builtin_popcountll((u64){w0})", "u32"),
    "clz": ("{w0} ? (u32)__builtin_clzll((u64){w0}) - (64 - {n}) : (u32){n}", "u32"),
    "bfi": ("field_insert<{t}>({0}, {1}, {i2}, {i3})", ""),
    "bfe": ("field_extract<{w}>({w0}, {i1}, {i2})", "w"),
    "prmt": ("permute({0}, {1}, {2})", "u32"),
    "shf.l": ("(u32)((((u64){1} << 32 | {0}) << ({2} & 31)) >> 32)", "u32"),
    "shf.r": ("(u32)(((u64){1} << 32 | {0}) >> ({2} & 31))", "u32"),
    "ex2": ("ex2({0})", ""), "lg2": ("log2f({0})", ""), "rcp": ("1 / {0}", ""), "sqrt": ("sqrt{f}({0})", ""),
    "copysign": ("copysign({1}, {0})", ""),
}  # fmt: skip


class _Sources:
    """The sources of an instruction, translated when a template names them."""

    def __init__(self, kernel: Kernel, kind: str, args: list[str]) -> None:
        self.kernel, self.kind, self.args = kernel, kind, args

    def __getitem__(self, key: str) -> str:
        named = {"t": self.kind, "w": unsigned(self.kind), "n": str(WIDTH[self.kind])}
        if key in named:
            return named[key]
        if key == "f":
            return "f" if self.kind == "f32" else ""
        how = key.rstrip("0123456789")
        kind = {"": self.kind, "w": unsigned(self.kind), "i": "u32", "p": "pred"}[how]
        return operand(self.kernel, self.args[int(key.removeprefix(how))], kind)


def arithmetic(kernel: Kernel, parts: list[str], args: list[str]) -> str:
    """Translate what computes a register from registers."""
    name, kind = parts[0], parts[-1]
    variants = [f"{name}.{parts[1]}", f"{name}.{kind}", f"{name}.{kind[0]}", name]
    found = next((v for v in variants if v in ARITHMETIC), None)
    if found is None:
        msg = f"instruction {'.'.join(parts)}"
        raise NotImplementedError(msg)
    template, result = ARITHMETIC[found]
    sources = _Sources(kernel, kind, args[1:])
    expression = re.sub(r"\{(\w+)\}", lambda m: sources[m[1]], template)
    return assign(kernel, args[0], expression, {"": kind, "w": unsigned(kind)}.get(result, result))


def instruction(kernel: Kernel, text: str, where: str, seen: set[str]) -> str:
    """Translate one instruction; `seen` holds the labels above it."""
    guard, match = "", re.match(r"@(!?)%(p\d+)\s+(.*)", text, re.DOTALL)
    if match:
        guard, text = f"if ({match[1]}R{match[2]}) ", match[3]
    opcode, _, rest = text.replace("\t", " ").partition(" ")
    parts, args = opcode.split("."), [a.strip() for a in re.split(r",(?![^{\[]*[}\]])", rest)] if rest else []
    name = parts[0]
    if name == "bra":
        label = args[0].replace("$", "")
        cost = f"if (--C->budget < 0) emulator_exhausted(C, {where}); " if label in seen else ""
        code = f"{{ {cost}goto {label}; }}"
    elif name in {"ret", "exit"}:
        code = "return;"
    elif name in {"bar", "barrier"}:
        synced = parts[1] == "warp"
        code = (
            f"emulator_collective(C, emulator::SYNC, {operand(kernel, args[0], 'u32')}, 0, 0, {where});"
            if synced
            else f"emulator_barrier(C, {operand(kernel, args[0], 'u32')}, {where});"
        )
    elif name == "nanosleep":
        code = "emulator_rest(C);"
    elif name in {"fence", "membar"}:
        code = "__atomic_thread_fence(__ATOMIC_SEQ_CST);"
    elif name in {"ld", "ldu", "st", "atom", "red", "shfl", "vote"}:
        how = {
            "ld": load,
            "ldu": load,
            "st": store,
            "atom": atomic,
            "red": atomic,
            "shfl": shuffle,
            "vote": vote,
        }
        code = how[name](kernel, parts, args, where)
    elif name == "cvta":
        sign = "-" if "to" in parts else "+"
        shift = f" {sign} emulator::SHARED_WINDOW" if any(p.startswith("shared") for p in parts) else ""
        code = assign(kernel, args[0], f"{operand(kernel, args[1], parts[-1])}{shift}", parts[-1])
    elif name == "mov":
        code = move(kernel, parts, args)
    elif name == "setp":
        code = compare(kernel, parts, args)
    elif name in {"mul", "mad"} and not (name == "mad" and parts[-1][0] == "f"):
        code = multiply(kernel, parts, args)
    elif name == "cvt":
        code = convert(kernel, parts, args)
    elif name == "lop3":
        code = logic3(kernel, parts[-1], args)
    else:
        code = arithmetic(kernel, parts, args)
    return guard + code
