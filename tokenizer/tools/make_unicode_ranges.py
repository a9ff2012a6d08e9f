#!/usr/bin/env python3
"""Writes tokenizer/unicode_ranges.cc from the character classes that the real tokenizer uses.

  tokenizer/tools/make_unicode_ranges.py > tokenizer/unicode_ranges.cc

The input, tests/golden/data/text/unicode_classes.json, holds the ranges of \\p{L} \\p{M} \\p{N} \\p{P}
\\p{S} and \\s as Hugging Face's regex engine matches them (Unicode 16.0).
"""
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
BITS = {"L": 1, "M": 2, "N": 4, "P": 8, "S": 16, "space": 32}

classes = json.loads((ROOT / "tests/golden/data/text/unicode_classes.json").read_text())
mask = bytearray(0x110000)
for name, bit in BITS.items():
    for first, last in classes[name]:
        for code_point in range(first, last + 1):
            mask[code_point] |= bit

ranges = []
start = 0
for code_point in range(1, 0x110001):
    if code_point == 0x110000 or mask[code_point] != mask[start]:
        if mask[start]:
            ranges.append((start, code_point - 1, mask[start]))
        start = code_point

print("// Made by tokenizer/tools/make_unicode_ranges.py; do not edit.")
print("// clang-format off")
print('#include "tokenizer/unicode_classes.h"')
print()
print("namespace sluice {")
print()
print(f"const UnicodeRange kUnicodeRanges[] = {{")
line = "   "
for first, last, bits in ranges:
    item = f" {{0x{first:x}, 0x{last:x}, {bits}}},"
    if len(line) + len(item) > 100:
        print(line)
        line = "   "
    line += item
print(line)
print("};")
print(f"const int kNumUnicodeRanges = {len(ranges)};")
print()
print("}  // namespace sluice")
