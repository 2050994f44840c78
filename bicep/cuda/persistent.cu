// The expert that stays on the device: one block polls a ring of jobs in memory that the host shares, answers
// into a second ring, and ends at the stop word or when nothing came for too long.
//
// Both rings have the layout of ringbuf/spsc.py: the strategy's own kernel writes and polls them.  An answer
// is published before its job is given back, so a job is either answered or still in its ring, whatever ends
// the kernel.  Weights are replaced by pointing at another model and raising the epoch; a model is never
// overwritten.
#include "expert.cuh"

enum { COMMAND_STOP = -1, COMMAND_IDLE = -2 };

// Wait for a job (thread 0 alone).  Returns its place in the ring, or a command to end.
__device__ __forceinline__ i64 next_job(char* box, const char* jobs, i64 head, i64* beats) {
    i64 idle_limit = load_acquire(box + MAILBOX_IDLE_LIMIT);
    for (i64 polls = 0; polls < idle_limit; ++polls) {
        if (load_acquire(box + MAILBOX_STOP)) return COMMAND_STOP;  // pairs with Mailbox.stop()
        store_release(box + MAILBOX_HEARTBEAT, ++*beats);
        if (load_acquire(jobs + RING_TAIL) != head) return head;  // pairs with publish(): the job is visible
        rest(64);
    }
    return COMMAND_IDLE;
}

// Wait until the ring of answers has room (thread 0 alone); false at the stop word.
__device__ __forceinline__ bool wait_for_room(char* box, const char* answers, i64 tail, i64 mask,
                                              i64* beats) {
    while (tail - load_acquire(answers + RING_HEAD) > mask) {  // pairs with pop(): the slot is free again
        if (load_acquire(box + MAILBOX_STOP)) return false;
        store_release(box + MAILBOX_HEARTBEAT, ++*beats);
        rest(64);
    }
    return true;
}

extern "C" __global__ void expert_persistent(char* box, char* jobs, char* answers) {
    BICEP_DYNAMIC_SHARED(f32, memory);  // the job of this turn, then the room of answer_job
    __shared__ i64 command;
    __shared__ const char* model;
    i64 job_mask = *(const i64*)(jobs + RING_MASK), job_size = *(const i64*)(jobs + RING_RECORD_SIZE);
    i64 answer_mask = *(const i64*)(answers + RING_MASK);
    i64 head = load_acquire(jobs + RING_HEAD), tail = load_acquire(answers + RING_TAIL), beats = 0;
    for (;;) {
        if (threadIdx.x == 0) {
            command = next_job(box, jobs, head, &beats);
            if (command >= 0 && !wait_for_room(box, answers, tail, answer_mask, &beats))
                command = COMMAND_STOP;
            i64 epoch = load_acquire(box + MAILBOX_EPOCH);  // pairs with Mailbox.swap(): the model is visible
            model = (const char*)load_acquire(box + MAILBOX_MODEL);
            store_release(box + MAILBOX_EPOCH_TAKEN, epoch);
        }
        __syncthreads();
        if (command < 0) break;
        volatile const i64* slot =
            (volatile const i64*)(jobs + RING_HEADER_SIZE + (head & job_mask) * job_size);
        i64* job = (i64*)memory;
        for (i64 k = threadIdx.x; k < job_size / 8; k += blockDim.x) job[k] = slot[k];
        __syncthreads();
        Inference* out = (Inference*)(answers + RING_HEADER_SIZE) + (tail & answer_mask);
        answer_job(model, (const Job*)job, memory + job_size / 4, out);
        ++head;
        ++tail;
        if (threadIdx.x == 0) {
            store_release(answers + RING_TAIL, tail);  // pairs with front(): the answer is visible
            store_release(jobs + RING_HEAD, head);     // pairs with claim(): the slot is free again
        }
        __syncthreads();  // the room may be written again
    }
    if (threadIdx.x == 0) store_release(box + MAILBOX_ENDED, command);
}
