// The simulated device, as the stand-in libraries see it.
//
// libascendcl.so implements this interface; libhccl.so, libopapi.so and the redirect of the aten
// kernels call it. Device memory is host memory of this process that is accounted for, so that
// device and host pointers can be told apart. A task submitted to a stream runs at once in the
// calling thread, unless the stream captures a graph (then it is also recorded) or updates one
// (then it is only recorded).
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// One range of memory that a task reads or writes.
typedef struct {
    const void* address;
    uint64_t bytes;
    uint64_t how;  // bits: 1 written (else read), 2 a view that is not contiguous
} NpuSimAccess;

// One unit of device work. `run` returns 0 or an ACL error code, and may run many times when the
// task is part of a graph. `drop` frees `state`. `name` is copied.
typedef struct {
    const char* name;
    int (*run)(void* state);
    void (*drop)(void* state);
    void* state;
    int already_ran;  // 1: the caller has done the work of the first run itself
} NpuSimTask;

// Takes over `task->state`. Returns 0 or an ACL error code; the reason is in aclGetRecentErrMsg().
int npu_sim_submit(void* stream, const NpuSimTask* task);

// Waits until work may start on `stream`; returns 0, or the error of what ran there before.
int npu_sim_ready(void* stream);

// 1 while `stream` captures a graph, 2 while it updates one: results are not used by the caller.
int npu_sim_stream_state(void* stream);

// 1 when [address, address + bytes) lies in one live device allocation.
int npu_sim_is_device(const void* address, uint64_t bytes);

// Sets what aclGetRecentErrMsg() of this thread says and returns `code`.
const char* aclGetRecentErrMsg(void);
int npu_sim_error(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Seconds after which waiting for another thread or process is an error (NPU_SIM_TIMEOUT).
double npu_sim_wait_limit(void);
void npu_sim_set_wait_limit(double seconds);

// The recorder. `kind` is one of op, collective, copy, graph.
int npu_sim_recording(void);
void npu_sim_record_start(void);
void npu_sim_record_stop(void);
void npu_sim_record(const char* kind, const char* name, const NpuSimAccess* accesses, uint64_t n);
// Everything recorded since the last call, as JSON lines; free with npu_sim_record_free.
char* npu_sim_record_take(void);
void npu_sim_record_free(char* text);

// Sets a range of device memory to zero without touching pages that nobody has used yet.
void npu_sim_zero(void* address, uint64_t bytes);

#ifdef __cplusplus
}
#endif
