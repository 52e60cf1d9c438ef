// What the source files of libascendcl.so share with each other.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "acl/acl.h"
#include "device.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace npu_sim {

// Properties of one product. Sizes are those of a common card of the family, and approximate: a
// program must not depend on them.
struct Product {
    const char* soc_name;   // what aclrtGetSocName() says
    int64_t cube_cores;     // matrix cores
    int64_t vector_cores;
    int64_t npu_arch;       // ACL_DEV_ATTR_NPU_ARCH
    int64_t l2_bytes;
};

const Product& product();
uint32_t device_count();
size_t device_memory();          // bytes each device has
int current_device();
void set_current_device(int device);

// Accounting against device_memory(); false when it does not fit.
bool charge(int device, size_t bytes);
void refund(int device, size_t bytes);

// Graphs that run in the background, see stream.cpp.
void settle(aclrtStream stream);  // waits for what was submitted to `stream`
void settle_all();
int refuse_in_capture(const char* call);  // 0, or the error of a synchronising call while capturing

// Seconds after which waiting for another thread or process is an error.
double wait_limit();

}  // namespace npu_sim
