// One question to a FusionNet expert, answered by one block: first layer, GELU, dropout over the samples,
// second layer, GELU, dropout, two heads, then mean, spread, noise and agreement.  The answer is the
// INFERENCE record of the CPU plan, field by field.
//
// A warp takes a row of the first layer (its 32 lanes share the CSR product), then a unit of the second layer
// (a lane is a sample).  Sums have one fixed order for a given block size.
#pragma once
#include "common.cuh"

enum { NEWS_NONE = 0, NEWS_HALF = 1, NEWS_EMBEDDING = 2 };  // what a job brings behind its features

// Shared memory of a block, in 4-byte words; bicep/cuda/layout.py computes the same.
struct Room {
    f32 *inputs, *news, *hidden, *partial, *heads;
    u32* words;
};

__device__ __forceinline__ Room room_in(f32* memory, const Model* model, i32 groups) {
    i32 units = model->hidden_one + model->hidden_two, warps = blockDim.x / WARP;
    Room room;
    room.inputs = memory;
    room.news = room.inputs + model->n_tech;
    room.hidden = room.news + max(model->n_news, model->hidden_one);
    room.words = (u32*)(room.hidden + model->hidden_one);
    room.partial = (f32*)(room.words + groups * units);
    room.heads = room.partial + warps * groups * 2 * WARP;
    return room;
}

__device__ __forceinline__ void refuse(Inference* out, i64 expert, i32 status) {
    if (threadIdx.x != 0) return;
    Inference blank = {};
    blank.status = status;
    blank.expert = expert;
    *out = blank;
}

__device__ __forceinline__ f32 row_product(const i32* rows, const Entry* entries, i32 row, const f32* x) {
    f32 sum = 0.0f;
    for (i32 j = rows[row] + (threadIdx.x & (WARP - 1)); j < rows[row + 1]; j += WARP)
        sum = fmaf(entries[j].weight, x[entries[j].column], sum);
    return sum;
}

// Copy features and news into shared memory and draw the mask words; ends with a barrier.
__device__ __forceinline__ void stage_job(const Model* model, const Job* job, Room room, i32 groups) {
    const f64* features = (const f64*)(job + 1);
    const f32* news = (const f32*)(features + model->n_tech);
    for (i32 k = threadIdx.x; k < model->n_tech; k += blockDim.x) {
        f64 value =
            features[k];  // not finite here, not finite there: what overflows float32 is refused later
        room.inputs[k] = is_finite(value) ? (f32)value : __uint_as_float(0x7fc00001u);
    }
    i32 count = job->news == NEWS_HALF ? model->hidden_one : job->news == NEWS_EMBEDDING ? model->n_news : 0;
    for (i32 k = threadIdx.x; k < count; k += blockDim.x) room.news[k] = news[k];
    i32 units = model->hidden_one + model->hidden_two;
    for (i32 k = threadIdx.x; k < groups * units; k += blockDim.x)
        room.words[k] = keep_word(k % units, (u32)job->mask_index, model->bank_number, k / units,
                                  model->key_left, model->key_right);
    __syncthreads();
}

// Whether a feature, or a number of the news, is NaN or (news) infinite; the same answer in every thread.
__device__ __forceinline__ bool is_unfit(const Model* model, const Job* job, Room room) {
    bool bad = false;
    for (i32 k = threadIdx.x & (WARP - 1); k < model->n_tech; k += WARP)
        bad |= room.inputs[k] != room.inputs[k];
    i32 count = job->news == NEWS_EMBEDDING ? model->n_news : 0;
    for (i32 k = threadIdx.x & (WARP - 1); k < count; k += WARP) bad |= room.news[k] - room.news[k] != 0.0f;
    return __any_sync(FULL, bad);
}

// hidden[unit] = scale * gelu(first layer); ends with a barrier.
__device__ __forceinline__ void first_layer(const char* base, const Model* model, const Expert* expert,
                                            const Job* job, Room room) {
    const f32* bias = (const f32*)(base + expert->bias_one);
    i32 lane = threadIdx.x & (WARP - 1), warps = blockDim.x / WARP;
    for (i32 unit = threadIdx.x / WARP; unit < model->hidden_one; unit += warps) {
        f32 sum = row_product((const i32*)(base + expert->tech_rows),
                              (const Entry*)(base + expert->tech_entries), unit, room.inputs);
        if (job->news == NEWS_EMBEDDING)
            sum += row_product((const i32*)(base + expert->news_rows),
                               (const Entry*)(base + expert->news_entries), unit, room.news);
        sum = warp_sum(sum) + (job->news == NEWS_HALF ? room.news[unit] : bias[unit]);
        if (lane == 0) room.hidden[unit] = gelu(sum) * KEEP_SCALE;
    }
    __syncthreads();
}

// partial[warp][group][head][sample]: what the warp's units add to the heads; ends with a barrier.
__device__ __forceinline__ void second_layer(const char* base, const Model* model, const Expert* expert,
                                             Room room, i32 groups) {
    const i32* rows = (const i32*)(base + expert->second_rows);
    const Entry* entries = (const Entry*)(base + expert->second_entries);
    const f32 *bias = (const f32*)(base + expert->bias_two), *mean = (const f32*)(base + expert->heads);
    const f32* variance = mean + model->hidden_two;
    i32 lane = threadIdx.x & (WARP - 1), warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    i32 units = model->hidden_one + model->hidden_two;
    for (i32 group = 0; group < groups; ++group) {
        const u32* words = room.words + group * units;
        f32 to_mean = 0.0f, to_variance = 0.0f;
        for (i32 unit = warp; unit < model->hidden_two; unit += warps) {
            f32 sum = bias[unit];
            for (i32 j = rows[unit]; j < rows[unit + 1]; ++j) {
                Entry entry = entries[j];
                f32 value = words[entry.column] >> lane & 1 ? room.hidden[entry.column] : 0.0f;
                sum = fmaf(entry.weight, value, sum);
            }
            f32 kept = words[model->hidden_one + unit] >> lane & 1 ? gelu(sum) * KEEP_SCALE : 0.0f;
            to_mean = fmaf(kept, mean[unit], to_mean);
            to_variance = fmaf(kept, variance[unit], to_variance);
        }
        f32* partial = room.partial + (warp * groups + group) * 2 * WARP;
        partial[lane] = to_mean;
        partial[WARP + lane] = to_variance;
    }
    __syncthreads();
}

// heads[group][head][sample] = the sums over all warps, the second turned into a variance; ends with a
// barrier.
__device__ __forceinline__ void finish_samples(const char* base, const Model* model, const Expert* expert,
                                               Room room, i32 groups) {
    const f32* bias = (const f32*)(base + expert->heads) + 2 * model->hidden_two;
    i32 count = groups * 2 * WARP;
    for (i32 k = threadIdx.x; k < count; k += blockDim.x) {
        i32 head = k / WARP & 1;
        f32 sum = bias[head];
        for (i32 warp = 0; warp < (i32)(blockDim.x / WARP); ++warp) sum += room.partial[warp * count + k];
        if (head && sum == sum) sum = expf(fminf(fmaxf(sum, LOG_VARIANCE_LEAST), LOG_VARIANCE_MOST));
        room.heads[k] = sum;
    }
    __syncthreads();
}

__device__ __forceinline__ void write_answer(const Model* model, const Expert* expert, const Job* job,
                                             Room room, i32 groups, Inference* out) {
    i32 lane = threadIdx.x & (WARP - 1), samples = groups * WARP;
    f64 mean = 0.0, noise = 0.0, squares = 0.0;
    for (i32 group = 0; group < groups; ++group) {
        mean += room.heads[group * 2 * WARP + lane];
        noise += room.heads[(group * 2 + 1) * WARP + lane];
    }
    mean = warp_sum(mean) / samples;
    noise = warp_sum(noise);
    i64 agree = 0;
    for (i32 group = 0; group < groups; ++group) {
        f64 value = room.heads[group * 2 * WARP + lane];
        squares += (value - mean) * (value - mean);
        agree += __popc(__ballot_sync(FULL, (mean > 0.0 && value > 0.0) || (mean < 0.0 && value < 0.0)));
    }
    squares = warp_sum(squares);
    f64 scale = model->label_scale;
    if (!is_finite(mean * scale) || !is_finite((squares + noise) * scale * scale)) {
        refuse(out, job->expert, STATUS_NAN_OUTPUT);
        return;
    }
    if (lane != 0) return;
    Inference answer = {};
    answer.mean = mean * scale;
    answer.epistemic = squares / (samples - 1) * scale * scale;
    answer.aleatoric = noise / samples * scale * scale;
    answer.agree = agree;
    answer.mask_index = job->mask_index;
    answer.news_version = job->news_version;
    answer.bank = model->bank_number;
    answer.status = STATUS_OK;
    answer.rung = model->rung;
    answer.expert = job->expert;
    answer.served = expert->served;
    *out = answer;
}

// Answer one job.  Every thread of the block calls this with the same arguments.  A caller that goes on to
// another job has a barrier before it writes to `memory` again.  Thread 0 writes the answer.
__device__ __forceinline__ void answer_job(const char* base, const Job* job, f32* memory, Inference* out) {
    const Model* model = (const Model*)base;
    if (job->expert < 0 || job->expert >= model->experts) {
        refuse(out, 255, STATUS_BAD_EXPERT);
        return;
    }
    const Expert* expert = (const Expert*)(model + 1) + job->expert;
    i32 groups = model->groups;
    Room room = room_in(memory, model, groups);
    stage_job(model, job, room, groups);
    if (is_unfit(model, job, room)) {
        refuse(out, job->expert, STATUS_NAN_INPUT);
        return;
    }
    first_layer(base, model, expert, job, room);
    second_layer(base, model, expert, room, groups);
    finish_samples(base, model, expert, room, groups);
    if (threadIdx.x < WARP) write_answer(model, expert, job, room, groups, out);
}
