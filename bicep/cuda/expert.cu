// Many questions in one launch: a block answers a job, so a batch of symbols, of models or of both is one
// call.
#include "expert.cuh"

// jobs: count records of job_size bytes (a JOB, its features, its news); answers: INFERENCE[count].
extern "C" __global__ void expert_batch(const char* model, const char* jobs, i32 job_size, i32 count,
                                        char* answers) {
    BICEP_DYNAMIC_SHARED(f32, memory);
    i32 n = blockIdx.x;
    if (n >= count) return;
    answer_job(model, (const Job*)(jobs + (i64)n * job_size), memory, (Inference*)answers + n);
}
