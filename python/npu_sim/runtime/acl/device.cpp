// libascendcl.so, part 1: set-up, devices and their properties, error messages, logging.
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "internal.h"

namespace npu_sim {
namespace {

const Product kProducts[] = {
    {"Ascend910B3", 20, 40, 2201, 192 << 20},      // Atlas A2
    {"Ascend910_9391", 24, 48, 2201, 192 << 20},   // Atlas A3
    {"Ascend310P3", 8, 7, 2002, 16 << 20},         // Atlas inference card
    {"Ascend950PR_9599", 32, 64, 3510, 128 << 20}, // Ascend 950
};

// Less than the cards have: the engine sizes its KV cache by it, and with all of 64 GB that of a model
// of two layers would have more elements than the attention operators take.
constexpr double kMemoryGb = 16;

thread_local int t_device = 0;
thread_local char t_message[8192];

}  // namespace

const Product& product() {
    static const Product* chosen = [] {
        const char* name = getenv("NPU_SIM_SOC");
        if (!name || !*name) return &kProducts[0];
        for (const Product& p : kProducts)
            if (!strcmp(p.soc_name, name)) return &p;
        fprintf(stderr, "npu_sim: NPU_SIM_SOC=%s is not a simulated product:", name);
        for (const Product& p : kProducts) fprintf(stderr, " %s", p.soc_name);
        fputc('\n', stderr);
        abort();
    }();
    return *chosen;
}

uint32_t device_count() {
    const char* s = getenv("NPU_SIM_DEVICES");
    return s ? static_cast<uint32_t>(atoi(s)) : 1;
}

size_t device_memory() {
    static const size_t bytes = [] {
        const char* s = getenv("NPU_SIM_MEMORY_GB");
        return static_cast<size_t>((s && *s ? atof(s) : kMemoryGb) * (1 << 30));
    }();
    return bytes;
}

static double g_wait_limit = [] {
    const char* s = getenv("NPU_SIM_TIMEOUT");
    return s ? atof(s) : 300.0;
}();
double wait_limit() { return g_wait_limit; }

int current_device() { return t_device; }
void set_current_device(int device) { t_device = device; }

}  // namespace npu_sim

using namespace npu_sim;

EXPORT int npu_sim_error(int code, const char* format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(t_message, sizeof t_message, format, args);
    va_end(args);
    return code;
}

// CANN clears the message once it was read; so does this.
EXPORT const char* aclGetRecentErrMsg() {
    static thread_local char given[sizeof t_message];
    memcpy(given, t_message, sizeof given);
    t_message[0] = 0;
    return given;
}

EXPORT void aclAppLog(aclLogLevel level, const char* function, const char*, uint32_t, const char* format, ...) {
    static const bool wanted = getenv("NPU_SIM_LOG") != nullptr;  // with ASCEND_GLOBAL_LOG_LEVEL=0..3
    if (!wanted) return;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "[torch_npu %d] %s: ", static_cast<int>(level), function);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

EXPORT double npu_sim_wait_limit() { return wait_limit(); }
EXPORT void npu_sim_set_wait_limit(double seconds) { g_wait_limit = seconds; }

// ------------------------------------------------------------------------------------------ set-up
EXPORT aclError aclInit(const char*) { return ACL_SUCCESS; }
EXPORT aclError aclFinalize() { return ACL_SUCCESS; }
EXPORT const char* aclrtGetSocName() { return product().soc_name; }

static const char* cann_version() {
    const char* s = getenv("NPU_SIM_CANN_VERSION");
    return s ? s : "8.5.0";
}
EXPORT aclError aclsysGetCANNVersion(aclCANNPackageName, aclCANNPackageVersion* out) {
    memset(out, 0, sizeof *out);
    snprintf(out->version, sizeof out->version, "%s", cann_version());
    int major = 0, minor = 0, release = 0;
    sscanf(cann_version(), "%d.%d.%d", &major, &minor, &release);
    snprintf(out->majorVersion, sizeof out->majorVersion, "%d", major);
    snprintf(out->minorVersion, sizeof out->minorVersion, "%d", minor);
    snprintf(out->releaseVersion, sizeof out->releaseVersion, "%d", release);
    return ACL_SUCCESS;
}
EXPORT aclError aclsysGetVersionStr(char*, char* out) {
    strcpy(out, cann_version());
    return ACL_SUCCESS;
}
EXPORT aclError aclsysGetVersionNum(char*, int32_t* out) {
    int major = 0, minor = 0, release = 0;
    sscanf(cann_version(), "%d.%d.%d", &major, &minor, &release);
    *out = major * 10000000 + minor * 100000 + release * 1000;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtGetVersion(int32_t* major, int32_t* minor, int32_t* patch) {
    *major = 1, *minor = 15, *patch = 0;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
EXPORT aclError aclrtGetLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }

// ----------------------------------------------------------------------------------------- devices
static aclError check_device(int32_t device) {
    if (device >= 0 && static_cast<uint32_t>(device) < device_count()) return ACL_SUCCESS;
    return npu_sim_error(ACL_ERROR_RT_INVALID_DEVICEID,
                         "device %d does not exist: the simulation has %u (NPU_SIM_DEVICES)", device, device_count());
}
EXPORT aclError aclrtGetDeviceCount(uint32_t* count) {
    *count = device_count();
    return ACL_SUCCESS;
}
EXPORT aclError aclrtSetDevice(int32_t device) {
    if (aclError e = check_device(device)) return e;
    set_current_device(device);
    return ACL_SUCCESS;
}
EXPORT aclError aclrtResetDevice(int32_t) { return ACL_SUCCESS; }
EXPORT aclError aclrtGetDevice(int32_t* device) {
    *device = current_device();
    return ACL_SUCCESS;
}
// A context is its device number, offset so that it is never null.
EXPORT aclError aclrtGetCurrentContext(aclrtContext* context) {
    *context = reinterpret_cast<void*>(static_cast<intptr_t>(0x1000 + current_device()));
    return ACL_SUCCESS;
}
EXPORT aclError aclrtSetCurrentContext(aclrtContext context) {
    return aclrtSetDevice(static_cast<int32_t>(reinterpret_cast<intptr_t>(context) - 0x1000));
}
EXPORT aclError aclrtGetPrimaryCtxState(int32_t, uint32_t* flags, int32_t* active) {
    if (flags) *flags = 0;
    *active = 1;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) {
    *can = 1;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return ACL_SUCCESS; }
EXPORT aclError aclrtDeviceGetBareTgid(int32_t* pid) {
    *pid = 0;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtGetLogicDevIdByUserDevId(const int32_t user, int32_t* const logic) {
    *logic = user;
    return ACL_SUCCESS;
}
EXPORT aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo info, int64_t* value) {
    switch (info) {
        case ACL_DEVICE_INFO_AI_CORE_NUM: *value = product().cube_cores; return ACL_SUCCESS;
        case ACL_DEVICE_INFO_VECTOR_CORE_NUM: *value = product().vector_cores; return ACL_SUCCESS;
        case ACL_DEVICE_INFO_L2_SIZE: *value = product().l2_bytes; return ACL_SUCCESS;
        default: return npu_sim_error(ACL_ERROR_RT_PARAM_INVALID, "aclGetDeviceCapability: unknown property %d", info);
    }
}
EXPORT aclError aclrtGetDeviceInfo(uint32_t device, aclrtDevAttr attribute, int64_t* value) {
    if (aclError e = check_device(static_cast<int32_t>(device))) return e;
    switch (attribute) {
        case ACL_DEV_ATTR_AICPU_CORE_NUM: *value = 6; break;
        case ACL_DEV_ATTR_AICORE_CORE_NUM:
        case ACL_DEV_ATTR_CUBE_CORE_NUM: *value = product().cube_cores; break;
        case ACL_DEV_ATTR_VECTOR_CORE_NUM: *value = product().vector_cores; break;
        case ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE: *value = static_cast<int64_t>(device_memory()); break;
        case ACL_DEV_ATTR_L2_CACHE_SIZE: *value = product().l2_bytes; break;
        case ACL_DEV_ATTR_NPU_ARCH: *value = product().npu_arch; break;
        default: *value = 0;
    }
    return ACL_SUCCESS;
}
EXPORT aclError aclrtGetDeviceUtilizationRate(int32_t, aclrtUtilizationInfo* info) {
    memset(info, 0, sizeof *info);
    return ACL_SUCCESS;
}
EXPORT aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }
EXPORT aclError aclrtSetOpExecuteTimeOut(uint32_t) { return ACL_SUCCESS; }
EXPORT aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return ACL_SUCCESS; }

// Options such as "deterministic": remembered, without effect (the host computes deterministically).
static std::map<int, int64_t>& g_options = *new std::map<int, int64_t>;
EXPORT aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
    *value = g_options[option];
    return ACL_SUCCESS;
}
EXPORT aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
    g_options[option] = value;
    return ACL_SUCCESS;
}
EXPORT aclError aclrtCtxGetSysParamOpt(aclSysParamOpt option, int64_t* value) { return aclrtGetSysParamOpt(option, value); }
EXPORT aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return aclrtSetSysParamOpt(option, value); }
