// libascendcl.so, part 2: device memory, pinned host memory, copies.
//
// Every device allocation is a mapping of its own, so that a use after free and most uses out of
// bounds end the process; the table of live allocations tells device pointers from host pointers.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "internal.h"

namespace npu_sim {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kMaxDevices = 64;

struct Block {
    size_t bytes;
    int device;
};

// Never destroyed: torch frees memory until the very end of the process.
std::mutex& g_mutex = *new std::mutex;
auto& g_device = *new std::map<const char*, Block>;     // live device allocations and mapped ranges
auto& g_pinned = *new std::map<const char*, size_t>;    // live aclrtMallocHost and aclrtHostRegister ranges
auto& g_reserved = *new std::map<const char*, size_t>;  // address ranges of aclrtReserveMemAddress
size_t g_used[kMaxDevices];

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// The live device allocation that holds all of [p, p + bytes), or null. Caller holds g_mutex.
const Block* find_device(const void* pointer, size_t bytes) {
    const char* p = static_cast<const char*>(pointer);
    auto it = g_device.upper_bound(p);
    if (it == g_device.begin()) return nullptr;
    --it;
    // Ranges mapped side by side (expandable segments) count as one.
    const char* end = it->first + it->second.bytes;
    if (p >= end) return nullptr;
    const Block* first = &it->second;
    while (p + bytes > end) {
        ++it;
        if (it == g_device.end() || it->first != end) return nullptr;
        end += it->second.bytes;
    }
    return first;
}

bool on_device(const void* p, size_t bytes) {
    std::lock_guard<std::mutex> lock(g_mutex);
    return find_device(p, bytes) != nullptr;
}

}  // namespace

bool charge(int device, size_t bytes) {
    std::lock_guard<std::mutex> lock(g_mutex);
    if (g_used[device] + bytes > device_memory()) return false;
    g_used[device] += bytes;
    return true;
}

void refund(int device, size_t bytes) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_used[device] -= bytes;
}

static aclError out_of_memory(const char* call, size_t bytes) {
    return npu_sim_error(ACL_ERROR_RT_MEMORY_ALLOCATION,
                         "%s: %zu bytes do not fit: device %d has %zu bytes, %zu in use (NPU_SIM_MEMORY_GB)", call, bytes,
                         current_device(), device_memory(), g_used[current_device()]);
}

// Refuses a copy whose pointers are not where its direction says, or that leaves an allocation.
static aclError check_copy(const char* call, const void* dst, size_t room, const void* src, size_t bytes,
                           aclrtMemcpyKind kind) {
    if (bytes == 0) return ACL_SUCCESS;
    if (bytes > room)
        return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "%s: %zu bytes into a destination of %zu", call, bytes, room);
    bool to_device = on_device(dst, bytes), from_device = on_device(src, bytes);
    bool want_to = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
    bool want_from = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
    if (kind > ACL_MEMCPY_DEVICE_TO_DEVICE) return ACL_SUCCESS;
    if (to_device != want_to)
        return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "%s: the destination %p (%zu bytes) is %s memory, the direction says %s",
                             call, dst, bytes, to_device ? "device" : "not live device", want_to ? "device" : "host");
    if (from_device != want_from)
        return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "%s: the source %p (%zu bytes) is %s memory, the direction says %s", call,
                             src, bytes, from_device ? "device" : "not live device", want_from ? "device" : "host");
    return ACL_SUCCESS;
}

static const char* direction(const void* dst, const void* src, size_t bytes) {
    bool to = on_device(dst, bytes), from = on_device(src, bytes);
    return to ? (from ? "device_to_device" : "host_to_device") : (from ? "device_to_host" : "host_to_host");
}

static void record_copy(const void* dst, const void* src, size_t bytes) {
    if (!npu_sim_recording() || bytes == 0) return;
    NpuSimAccess a[2] = {{src, bytes, 0}, {dst, bytes, 1}};
    npu_sim_record("copy", direction(dst, src, bytes), a, 2);
}

struct Copy {
    void* dst;
    const void* src;
    size_t bytes;
    int value;  // of a memset, when src is null
};

static int run_copy(void* state) {
    Copy* c = static_cast<Copy*>(state);
    if (!c->src) {
        if (c->value == 0) npu_sim_zero(c->dst, c->bytes);
        else memset(c->dst, c->value, c->bytes);
        return ACL_SUCCESS;
    }
    memmove(c->dst, c->src, c->bytes);
    record_copy(c->dst, c->src, c->bytes);
    return ACL_SUCCESS;
}

static aclError submit_copy(aclrtStream stream, const char* name, Copy copy) {
    NpuSimTask task = {name, run_copy, [](void* s) { delete static_cast<Copy*>(s); }, new Copy(copy), 0};
    return npu_sim_submit(stream, &task);
}

}  // namespace npu_sim

using namespace npu_sim;

EXPORT int npu_sim_is_device(const void* p, uint64_t bytes) { return on_device(p, bytes); }

EXPORT void npu_sim_zero(void* address, uint64_t bytes) {
    char* p = static_cast<char*>(address);
    if (bytes >= (1 << 20)) {
        // Whole pages are given back to the system, which hands them out as zeros when used again:
        // a KV cache of gigabytes then costs nothing until it is filled.
        char* first = reinterpret_cast<char*>(round_up(reinterpret_cast<size_t>(p), kPage));
        char* last = reinterpret_cast<char*>(reinterpret_cast<size_t>(p + bytes) / kPage * kPage);
        if (madvise(first, static_cast<size_t>(last - first), MADV_DONTNEED) == 0) {
            memset(p, 0, static_cast<size_t>(first - p));
            memset(last, 0, static_cast<size_t>(p + bytes - last));
            return;
        }
    }
    memset(p, 0, bytes);
}

// ------------------------------------------------------------------------------------- allocation
EXPORT aclError aclrtMalloc(void** out, size_t bytes, aclrtMemMallocPolicy) {
    size_t mapped = round_up(bytes + 32, kPage);  // CANN pads by 32 bytes; kernels may read them
    if (!charge(current_device(), bytes)) return out_of_memory("aclrtMalloc", bytes);
    void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        refund(current_device(), bytes);
        return npu_sim_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "aclrtMalloc: the host has no %zu bytes", mapped);
    }
    std::lock_guard<std::mutex> lock(g_mutex);
    g_device[static_cast<char*>(p)] = {bytes, current_device()};
    *out = p;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtMallocAlign32(void** out, size_t bytes, aclrtMemMallocPolicy policy) { return aclrtMalloc(out, bytes, policy); }
EXPORT aclError aclrtFree(void* p) {
    settle_all();
    std::lock_guard<std::mutex> lock(g_mutex);
    auto it = g_device.find(static_cast<char*>(p));
    if (it == g_device.end()) return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "aclrtFree: %p is not a device allocation", p);
    g_used[it->second.device] -= it->second.bytes;
    munmap(p, round_up(it->second.bytes + 32, kPage));
    g_device.erase(it);
    return ACL_SUCCESS;
}
EXPORT aclError aclrtGetMemInfo(aclrtMemAttr, size_t* available, size_t* total) {
    std::lock_guard<std::mutex> lock(g_mutex);
    *total = device_memory();
    *available = device_memory() - g_used[current_device()];
    return ACL_SUCCESS;
}

// Pinned memory is ordinary memory that is remembered.
EXPORT aclError aclrtMallocHost(void** out, size_t bytes) {
    *out = aligned_alloc(64, round_up(bytes + 1, 64));
    if (!*out) return npu_sim_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "aclrtMallocHost: the host has no %zu bytes", bytes);
    std::lock_guard<std::mutex> lock(g_mutex);
    g_pinned[static_cast<char*>(*out)] = bytes;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtMallocHostWithCfg(void** out, uint64_t bytes, aclrtMallocConfig*) { return aclrtMallocHost(out, bytes); }
EXPORT aclError aclrtFreeHost(void* p) {
    settle_all();
    std::lock_guard<std::mutex> lock(g_mutex);
    if (!g_pinned.erase(static_cast<char*>(p)))
        return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "aclrtFreeHost: %p is not pinned memory", p);
    free(p);
    return ACL_SUCCESS;
}
EXPORT aclError aclrtHostRegister(void* p, uint64_t bytes, aclrtHostRegisterType, void** device_pointer) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_pinned[static_cast<char*>(p)] = bytes;
    if (device_pointer) *device_pointer = p;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtHostUnregister(void* p) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_pinned.erase(static_cast<char*>(p));
    return ACL_SUCCESS;
}
EXPORT aclError aclrtPointerGetAttributes(const void* p, aclrtPtrAttributes* out) {
    memset(out, 0, sizeof *out);
    out->pageSize = kPage;
    std::lock_guard<std::mutex> lock(g_mutex);
    if (const Block* block = find_device(p, 1)) {
        out->location.type = ACL_MEM_LOCATION_TYPE_DEVICE;
        out->location.id = static_cast<uint32_t>(block->device);
        return ACL_SUCCESS;
    }
    auto it = g_pinned.upper_bound(static_cast<const char*>(p));
    bool pinned = it != g_pinned.begin() && (--it, static_cast<const char*>(p) < it->first + it->second);
    out->location.type = pinned ? ACL_MEM_LOCATION_TYPE_HOST : ACL_MEM_LOCATION_TYPE_UNREGISTERED;
    return ACL_SUCCESS;
}

// Reserved addresses with memory mapped in later (expandable segments of the caching allocator).
EXPORT aclError aclrtReserveMemAddress(void** out, size_t bytes, size_t, void*, uint64_t) {
    size_t unit = 2 << 20, mapped = round_up(bytes, unit) + unit;
    char* p = static_cast<char*>(mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (p == MAP_FAILED) return npu_sim_error(ACL_ERROR_RT_MEMORY_ALLOCATION, "aclrtReserveMemAddress: no room for %zu bytes", bytes);
    char* start = reinterpret_cast<char*>(round_up(reinterpret_cast<size_t>(p), unit));
    std::lock_guard<std::mutex> lock(g_mutex);
    g_reserved[start] = round_up(bytes, unit);
    *out = start;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtReleaseMemAddress(void* p) {
    std::lock_guard<std::mutex> lock(g_mutex);
    auto it = g_reserved.find(static_cast<char*>(p));
    if (it == g_reserved.end()) return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "aclrtReleaseMemAddress: %p was not reserved", p);
    munmap(p, it->second);
    g_reserved.erase(it);
    return ACL_SUCCESS;
}
struct Physical {
    size_t bytes;
    int device;
};
EXPORT aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t bytes, const aclrtPhysicalMemProp*, uint64_t) {
    if (!charge(current_device(), bytes)) return out_of_memory("aclrtMallocPhysical", bytes);
    *handle = reinterpret_cast<aclrtDrvMemHandle>(new Physical{bytes, current_device()});
    return ACL_SUCCESS;
}
EXPORT aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
    settle_all();
    Physical* physical = reinterpret_cast<Physical*>(handle);
    refund(physical->device, physical->bytes);
    delete physical;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtMapMem(void* p, size_t bytes, size_t, aclrtDrvMemHandle handle, uint64_t) {
    if (mprotect(p, bytes, PROT_READ | PROT_WRITE)) return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "aclrtMapMem: %p was not reserved", p);
    std::lock_guard<std::mutex> lock(g_mutex);
    g_device[static_cast<char*>(p)] = {bytes, reinterpret_cast<Physical*>(handle)->device};
    return ACL_SUCCESS;
}
EXPORT aclError aclrtUnmapMem(void* p) {
    settle_all();
    std::lock_guard<std::mutex> lock(g_mutex);
    auto it = g_device.find(static_cast<char*>(p));
    if (it == g_device.end()) return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "aclrtUnmapMem: %p is not mapped", p);
    madvise(p, it->second.bytes, MADV_DONTNEED);
    mprotect(p, it->second.bytes, PROT_NONE);
    g_device.erase(it);
    return ACL_SUCCESS;
}
static aclError no_sharing(const char* call) {
    return npu_sim_error(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "%s: memory shared between processes is not simulated", call);
}
EXPORT aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle, aclrtMemHandleType, uint64_t, uint64_t*) { return no_sharing("aclrtMemExportToShareableHandle"); }
EXPORT aclError aclrtMemImportFromShareableHandle(uint64_t, int32_t, aclrtDrvMemHandle*) { return no_sharing("aclrtMemImportFromShareableHandle"); }
EXPORT aclError aclrtMemSetPidToShareableHandle(uint64_t, int32_t*, size_t) { return no_sharing("aclrtMemSetPidToShareableHandle"); }

// ----------------------------------------------------------------------------------------- copies
EXPORT aclError aclrtMemcpy(void* dst, size_t room, const void* src, size_t bytes, aclrtMemcpyKind kind) {
    if (aclError e = refuse_in_capture("aclrtMemcpy")) return e;
    if (aclError e = check_copy("aclrtMemcpy", dst, room, src, bytes, kind)) return e;
    memmove(dst, src, bytes);
    record_copy(dst, src, bytes);
    return ACL_SUCCESS;
}
EXPORT aclError aclrtMemcpyAsync(void* dst, size_t room, const void* src, size_t bytes, aclrtMemcpyKind kind, aclrtStream stream) {
    if (aclError e = check_copy("aclrtMemcpyAsync", dst, room, src, bytes, kind)) return e;
    return bytes ? submit_copy(stream, "aclrtMemcpyAsync", {dst, src, bytes, 0}) : ACL_SUCCESS;
}
EXPORT aclError aclrtMemcpyAsyncWithCondition(void* dst, size_t room, const void* src, size_t bytes, aclrtMemcpyKind kind,
                                              aclrtStream stream) {
    return aclrtMemcpyAsync(dst, room, src, bytes, kind, stream);
}
EXPORT aclError aclrtMemset(void* p, size_t room, int32_t value, size_t bytes) {
    if (bytes > room || (bytes && !on_device(p, bytes)))
        return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "aclrtMemset: %p (%zu bytes) is not device memory", p, bytes);
    Copy set = {p, nullptr, bytes, value};
    return run_copy(&set);
}
EXPORT aclError aclrtMemsetAsync(void* p, size_t room, int32_t value, size_t bytes, aclrtStream stream) {
    if (bytes > room || (bytes && !on_device(p, bytes)))
        return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "aclrtMemsetAsync: %p (%zu bytes) is not device memory", p, bytes);
    return submit_copy(stream, "aclrtMemsetAsync", {p, nullptr, bytes, value});
}
