"""Pieces of a matrix product in vector code: a tile of sums in registers, signs, a transpose.

Written in LLVM's own language, because a compiled loop would not keep the sums of a tile in
registers. Shape and order are those of Goto and van de Geijn, "Anatomy of high-performance matrix
multiplication", TOMS 34(3), 2008. Functions take addresses; strides count elements.
"""

from functools import cache

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from shared.base.flat import TILE_WORDS

LANES = 16  # float32 of a vector register
ROWS = 8  # of a tile
VECTORS = 2  # of a tile's row
COLUMNS = VECTORS * LANES
STEPS = 8  # along the inner dimension that one turn of the loop takes
BIT_ELEMENTS = TILE_WORDS  # consecutive elements that take the same bit of as many words

FLOAT, WORD, INTEGER, BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
VECTOR, MASK = ir.VectorType(FLOAT, LANES), ir.VectorType(WORD, LANES)
CELLS = [(row, vector) for row in range(ROWS) for vector in range(VECTORS)]


@cache
def is_supported() -> bool:
    """Tell whether this processor has registers for a tile."""
    return bool(binding.get_host_cpu_features().get("avx512f"))


class _Code:
    """A builder of instructions with the few forms that are needed here."""

    def __init__(self, builder):
        self.builder = builder

    def pointer(self, address, kind=FLOAT):
        return self.builder.inttoptr(address, kind.as_pointer())

    def offset(self, pointer, count, stride=None):
        """Return the pointer ``count`` elements on, or ``count`` strides."""
        count = INTEGER(count) if isinstance(count, int) else count
        elements = count if stride is None else self.builder.mul(stride, count)
        return self.builder.gep(pointer, [elements])

    def load(self, pointer, kind=VECTOR):
        loaded = self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()))
        loaded.align = 4
        return loaded

    def store(self, vector, pointer):
        self.builder.store(
            vector, self.builder.bitcast(pointer, vector.type.as_pointer())
        ).align = 4

    def shuffle(self, one, other, lanes):
        """Return the vector of these lanes of two; those of ``other`` are counted from LANES on."""
        return self.builder.shuffle_vector(one, other, ir.Constant(MASK, [WORD(i) for i in lanes]))

    def broadcast(self, number, kind=VECTOR):
        """Return the vector whose every lane is ``number``."""
        empty = ir.Constant(kind, ir.Undefined)
        return self.shuffle(self.builder.insert_element(empty, number, WORD(0)), empty, [0] * LANES)

    def call(self, name, kind, *arguments):
        function = ir.FunctionType(kind, [argument.type for argument in arguments])
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, function, name), arguments
        )

    def fence(self):
        """Keep loads on their side of this point: else LLVM runs ahead and out of registers."""
        nothing = ir.FunctionType(ir.VoidType(), [])
        self.builder.asm(nothing, "", "~{memory}", [], side_effect=True)

    def fetch(self, pointer):
        """Prefetch a cache line that will be read, into the second-level cache."""
        byte = self.builder.bitcast(pointer, BYTE.as_pointer())
        read, level, data = WORD(0), WORD(2), WORD(1)
        self.call("llvm.prefetch.p0", ir.VoidType(), byte, read, level, data)


def _loop(code, depth, sums, body):
    """Run ``body(step, sums)`` for step 0, STEPS, ... up to ``depth``; return the last sums."""
    builder = code.builder
    before, inside = builder.block, builder.append_basic_block("steps")
    after = builder.append_basic_block("done")
    builder.branch(inside)
    builder.position_at_end(inside)
    step, carried = builder.phi(INTEGER), [builder.phi(VECTOR) for _ in sums]
    results = body(step, carried)
    following = builder.add(step, INTEGER(STEPS))
    for phi, first, later in zip(
        [step, *carried], [INTEGER(0), *sums], [following, *results], strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(later, inside)
    builder.cbranch(builder.icmp_signed("<", following, depth), inside, after)
    builder.position_at_end(after)
    return results


def _rank_one(code, sums, rows, panel):
    """Add to each sum the number at its row times its vector of the panel's line."""
    factors = [code.load(code.offset(panel, vector * LANES)) for vector in range(VECTORS)]
    numbers = [code.broadcast(code.builder.load(row)) for row in rows]
    fma = f"llvm.fma.v{LANES}f32"
    cells = zip(CELLS, sums, strict=True)
    return [code.call(fma, VECTOR, numbers[i], factors[j], total) for (i, j), total in cells]


@intrinsic
def multiply_tile(context, a, lda, b, depth, init, ldi, c, ldc, ahead, gap):
    """Let c (ROWS, COLUMNS) be init + a (ROWS, depth) times b (depth, COLUMNS).

    b is packed; depth is a multiple of STEPS; a stride ``ldi`` of 0 repeats one row. Meanwhile
    ``depth`` floats at ``ahead`` are fetched into cache, and as many ``gap`` elements later.
    """

    def generate(context, builder, signature, arguments):
        code = _Code(builder)
        depth, gap = arguments[3], arguments[9]
        lda, ldi, ldc = (arguments[i] for i in (1, 5, 7))
        a, b, init, c, ahead = (code.pointer(arguments[i]) for i in (0, 2, 4, 6, 8))
        lines = [code.offset(a, row, lda) for row in range(ROWS)]
        streams = [ahead, code.offset(ahead, gap)]

        def turn(step, sums):
            for stream in streams:
                code.fetch(code.offset(stream, step))
            panel = code.offset(b, step, INTEGER(COLUMNS))
            for at in range(STEPS):
                code.fence()
                addresses = [code.offset(line, builder.add(step, INTEGER(at))) for line in lines]
                sums = _rank_one(code, sums, addresses, code.offset(panel, at * COLUMNS))
            return sums

        def cell(pointer, row, vector, stride):
            return code.offset(code.offset(pointer, row, stride), vector * LANES)

        sums = [code.load(cell(init, *position, ldi)) for position in CELLS]
        for position, total in zip(CELLS, _loop(code, depth, sums, turn), strict=True):
            code.store(total, cell(c, *position, ldc))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 10), generate


@intrinsic
def perturb_run(context, out, second, source, words, bit, scale):
    """Write source (BIT_ELEMENTS,) + scale * z, half to ``out``, half to ``second``.

    A set ``bit`` of an element's word means -scale.
    """

    def generate(context, builder, signature, arguments):
        code = _Code(builder)
        halves, source = [code.pointer(i) for i in arguments[:2]], code.pointer(arguments[2])
        words, bits = code.pointer(arguments[3], WORD), code.broadcast(arguments[4], MASK)
        plus, minus = (code.broadcast(i) for i in (arguments[5], builder.fneg(arguments[5])))
        for at in range(0, BIT_ELEMENTS, LANES):
            chosen = builder.and_(code.load(code.offset(words, at), MASK), bits)
            unset = builder.icmp_unsigned("==", chosen, ir.Constant(MASK, [WORD(0)] * LANES))
            number = code.load(code.offset(source, at))
            target = code.offset(halves[at // COLUMNS], at % COLUMNS)
            code.store(builder.fadd(number, builder.select(unset, plus, minus)), target)
        return context.get_dummy_value()

    addresses = [types.int64] * 4
    return types.none(*addresses, types.uint32, types.float32), generate


@intrinsic
def transpose(context, out, ldo, source, lds):
    """Write the transpose of a square (LANES, LANES): rows of its halves interleaved, in turns."""

    def generate(context, builder, signature, arguments):
        code, (out, ldo, source, lds) = _Code(builder), arguments
        out, source, half = code.pointer(out), code.pointer(source), LANES // 2
        rows = [code.load(code.offset(source, row, lds)) for row in range(LANES)]
        low = [lane for i in range(half) for lane in (i, LANES + i)]
        high = [lane + half for lane in low]
        for _ in range(LANES.bit_length() - 1):
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [code.shuffle(*pair, lanes) for pair in pairs for lanes in (low, high)]
        for row, numbers in enumerate(rows):
            code.store(numbers, code.offset(out, row, ldo))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 4), generate
