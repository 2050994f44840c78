"""The symbol directory: which locate stands for which symbol today.

The directory message (R) is its only source.  A symbol is eight ASCII bytes padded with spaces, handled
as one int64.  Buckets are chains through the BOOK rows, as in order_map.py; a symbol that was announced
for two locates is found at the later one.
"""

from __future__ import annotations

from nimbus.book.layout import BOOK, BOOKS, BookState
from nimbus.book.order_map import MIXER
from ringbuf.jit import inlined, kernel
from ringbuf.memory import load_i64, load_u8, load_u32, store_i64, store_u8, store_u32, wrapping_multiply

_BOOK, _BOOKS, _SIZE = BOOK.at, BOOKS.at, BOOK.size


@inlined
def symbol_head(books: BookState, symbol8: int) -> int:
    """Return the address of the bucket head (u4 locate) of a symbol."""
    bucket = (wrapping_multiply(symbol8, MIXER) >> 24) & load_i64(books.words + _BOOKS.symbols_mask)
    return load_i64(books.words + _BOOKS.symbols) + bucket * 4


@kernel
def find_symbol(books: BookState, symbol8: int) -> int:
    """Return the locate of a symbol (its 8 bytes as one native int64), or -1."""
    locate = load_u32(symbol_head(books, symbol8))
    for _ in range(books.symbols_max):
        if locate == 0:
            return -1
        book = books.books + locate * _SIZE
        if load_i64(book + _BOOK.symbol) == symbol8:
            return locate
        locate = load_u32(book + _BOOK.chain)
    return -1


@kernel
def announce(books: BookState, locate: int, symbol8: int) -> None:
    """Enter the symbol of a locate (1 to symbols_max - 1), in place of an earlier one."""
    book = books.books + locate * _SIZE
    if load_u8(book + _BOOK.known):
        at = symbol_head(books, load_i64(book + _BOOK.symbol))
        for _ in range(books.symbols_max):
            here = load_u32(at)
            if here == locate:
                break
            at = books.books + here * _SIZE + _BOOK.chain
        store_u32(at, load_u32(book + _BOOK.chain))
    head = symbol_head(books, symbol8)
    store_i64(book + _BOOK.symbol, symbol8)
    store_u8(book + _BOOK.known, 1)
    store_u32(book + _BOOK.chain, load_u32(head))
    store_u32(head, locate)
