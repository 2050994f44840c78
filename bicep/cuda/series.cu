// Many instruments at once: indicators and rolling correlations.  Arrays are [time][instrument], so that
// neighbours in a warp read neighbours in memory.  float64: a recursion over a day keeps its digits.
// Definitions, seeding included, are those of strategy/features/bars.py (TA-Lib's; RSI of a flat market is
// 50).
#include "common.cuh"

#define RSI_BARS 14
#define ATR_BARS 14
#define EMA_BARS 20
#define FAST_BARS 12
#define SLOW_BARS 26
#define SIGNAL_BARS 9
#define FLAT 1e-9

// Fold a bar into a mean: the plain mean of `bars` bars from `first` on, then exponential.
__device__ __forceinline__ f64 fold(f64 old, f64 value, i32 bar, i32 first, i32 bars) {
    if (bar < first) return old;
    if (bar < first + bars) return bar == first + bars - 1 ? (old + value) / bars : old + value;
    return (value - old) * (2.0 / (bars + 1)) + old;
}

// Fold a bar into Wilder's mean, seeded with bars 1 .. `bars` (bar 0 has no predecessor).
__device__ __forceinline__ f64 fold_wilder(f64 old, f64 value, i32 bar, i32 bars) {
    if (bar <= bars) return bar == bars ? (old + value) / bars : old + value;
    return (old * (bars - 1) + value) / bars;
}

// out[indicator][time][instrument]: RSI 14, EMA 20, MACD 12/26, its signal 9, ATR 14; NaN until warm.
extern "C" __global__ void indicators(const f64* close, const f64* high, const f64* low, i32 bars,
                                      i32 instruments, f64* out) {
    i64 plane = (i64)bars * instruments;
    f64 cold = __longlong_as_double(0x7ff8000000000000LL);
    for (i32 n = blockIdx.x * blockDim.x + threadIdx.x; n < instruments; n += gridDim.x * blockDim.x) {
        f64 gain = 0.0, loss = 0.0, range = 0.0, mean = 0.0, fast = 0.0, slow = 0.0, signal = 0.0,
            before = 0.0;
        for (i32 bar = 0; bar < bars; ++bar) {
            i64 at = (i64)bar * instruments + n;
            f64 now = close[at];
            if (bar > 0) {
                gain = fold_wilder(gain, fmax(now - before, 0.0), bar, RSI_BARS);
                loss = fold_wilder(loss, fmax(before - now, 0.0), bar, RSI_BARS);
                range = fold_wilder(range, fmax(high[at], before) - fmin(low[at], before), bar, ATR_BARS);
            }
            mean = fold(mean, now, bar, 0, EMA_BARS);
            fast = fold(fast, now, bar, SLOW_BARS - FAST_BARS, FAST_BARS);
            slow = fold(slow, now, bar, 0, SLOW_BARS);
            signal = fold(signal, fast - slow, bar, SLOW_BARS - 1, SIGNAL_BARS);
            bool is_macd = bar >= SLOW_BARS + SIGNAL_BARS - 2;
            f64 both = gain + loss;
            out[at] = bar < RSI_BARS ? cold : both > FLAT ? 100.0 * gain / both : 50.0;
            out[plane + at] = bar < EMA_BARS - 1 ? cold : mean;
            out[2 * plane + at] = is_macd ? fast - slow : cold;
            out[3 * plane + at] = is_macd ? signal : cold;
            out[4 * plane + at] = bar < ATR_BARS ? cold : range;
            before = now;
        }
    }
}

// out[pair][time]: Pearson's correlation of two instruments over the last `window` values; NaN before the
// window is full, 0 when either is flat.  Two passes over the window: no running sum loses its digits.
extern "C" __global__ void rolling_correlation(const f64* values, const i32* pairs, i32 times,
                                               i32 instruments, i32 window, i32 pair_count, f64* out) {
    i32 pair = blockIdx.y;
    if (pair >= pair_count) return;
    const f64 *one = values + pairs[2 * pair], *two = values + pairs[2 * pair + 1];
    for (i32 time = blockIdx.x * blockDim.x + threadIdx.x; time < times; time += gridDim.x * blockDim.x) {
        f64 result = __longlong_as_double(0x7ff8000000000000LL);
        if (time >= window - 1) {
            f64 mean_one = 0.0, mean_two = 0.0, square_one = 0.0, square_two = 0.0, product = 0.0;
            for (i32 t = time - window + 1; t <= time; ++t) {
                mean_one += one[(i64)t * instruments];
                mean_two += two[(i64)t * instruments];
            }
            mean_one /= window;
            mean_two /= window;
            for (i32 t = time - window + 1; t <= time; ++t) {
                f64 a = one[(i64)t * instruments] - mean_one, b = two[(i64)t * instruments] - mean_two;
                square_one = fma(a, a, square_one);
                square_two = fma(b, b, square_two);
                product = fma(a, b, product);
            }
            f64 scale = sqrt(square_one) * sqrt(square_two);
            result = scale > 0.0 ? product / scale : 0.0;
        }
        out[(i64)pair * times + time] = result;
    }
}
