// libascendcl.so, part 5: interfaces that torch_npu links against and this simulation does not have.
//
// The older "aclop" operators: descriptors can be made, running one is refused with its name.
// torch_npu turns to them only where an aclnn operator is missing; here every aclnn operator the
// wheel knows has a symbol, so that this is never the silent way out.
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "acl/acl_op_compiler.h"
#include "internal.h"

namespace {
struct Description {
    aclDataType type;
    aclFormat format;
    std::vector<int64_t> dims;
    std::string name;
};
using Buffer = std::pair<void*, size_t>;
Description* of(const aclTensorDesc* d) { return reinterpret_cast<Description*>(const_cast<aclTensorDesc*>(d)); }
}  // namespace

EXPORT aclTensorDesc* aclCreateTensorDesc(aclDataType type, int n, const int64_t* dims, aclFormat format) {
    return reinterpret_cast<aclTensorDesc*>(new Description{type, format, std::vector<int64_t>(dims, dims + n), ""});
}
EXPORT void aclDestroyTensorDesc(const aclTensorDesc* d) { delete of(d); }
EXPORT aclDataType aclGetTensorDescType(const aclTensorDesc* d) { return of(d)->type; }
EXPORT aclFormat aclGetTensorDescFormat(const aclTensorDesc* d) { return of(d)->format; }
EXPORT size_t aclGetTensorDescNumDims(const aclTensorDesc* d) { return of(d)->dims.size(); }
EXPORT aclError aclGetTensorDescDimV2(const aclTensorDesc* d, size_t i, int64_t* size) {
    *size = of(d)->dims[i];
    return ACL_SUCCESS;
}
EXPORT void aclSetTensorDescName(aclTensorDesc* d, const char* name) { of(d)->name = name; }
EXPORT aclError aclSetTensorFormat(aclTensorDesc*, aclFormat) { return ACL_SUCCESS; }
EXPORT aclError aclSetTensorShape(aclTensorDesc*, int, const int64_t*) { return ACL_SUCCESS; }
EXPORT aclError aclSetTensorPlaceMent(aclTensorDesc*, aclMemType) { return ACL_SUCCESS; }
EXPORT aclDataBuffer* aclCreateDataBuffer(void* p, size_t bytes) { return reinterpret_cast<aclDataBuffer*>(new Buffer(p, bytes)); }
EXPORT aclError aclDestroyDataBuffer(const aclDataBuffer* b) {
    delete reinterpret_cast<const Buffer*>(b);
    return ACL_SUCCESS;
}
EXPORT aclopAttr* aclopCreateAttr() { return reinterpret_cast<aclopAttr*>(new int); }
EXPORT void aclopDestroyAttr(const aclopAttr* a) { delete reinterpret_cast<const int*>(a); }
EXPORT aclError aclopSetAttrBool(aclopAttr*, const char*, uint8_t) { return ACL_SUCCESS; }
EXPORT aclError aclopSetAttrInt(aclopAttr*, const char*, int64_t) { return ACL_SUCCESS; }
EXPORT aclError aclopSetAttrFloat(aclopAttr*, const char*, float) { return ACL_SUCCESS; }
EXPORT aclError aclopSetAttrString(aclopAttr*, const char*, const char*) { return ACL_SUCCESS; }
EXPORT aclError aclopSetAttrDataType(aclopAttr*, const char*, aclDataType) { return ACL_SUCCESS; }
EXPORT aclError aclopSetAttrListBool(aclopAttr*, const char*, int, const uint8_t*) { return ACL_SUCCESS; }
EXPORT aclError aclopSetAttrListInt(aclopAttr*, const char*, int, const int64_t*) { return ACL_SUCCESS; }
EXPORT aclError aclopSetAttrListFloat(aclopAttr*, const char*, int, const float*) { return ACL_SUCCESS; }
EXPORT aclError aclopSetAttrListListInt(aclopAttr*, const char*, int, const int*, const int64_t* const[]) { return ACL_SUCCESS; }

EXPORT aclError aclopCompileAndExecute(const char* name, int inputs, const aclTensorDesc* const input_descs[],
                                       const aclDataBuffer* const input_buffers[], int outputs, const aclTensorDesc* const[],
                                       aclDataBuffer* const output_buffers[], const aclopAttr*, aclopEngineType, aclopCompileType,
                                       const char*, aclrtStream stream) {
    (void)input_descs;
    // The cast between formats: a private format is a tag of the tensor here, its data stay plain.
    if (!strcmp(name, "Identity") && inputs == 1 && outputs == 1) {
        const Buffer* from = reinterpret_cast<const Buffer*>(input_buffers[0]);
        const Buffer* to = reinterpret_cast<const Buffer*>(output_buffers[0]);
        size_t bytes = from->second < to->second ? from->second : to->second;
        return aclrtMemcpyAsync(to->first, to->second, from->first, bytes, ACL_MEMCPY_DEVICE_TO_DEVICE, stream);
    }
    return npu_sim_error(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "the aclop operator %s is not simulated", name);
}

EXPORT aclError aclSetCompileopt(aclCompileOpt, const char*) { return ACL_SUCCESS; }
EXPORT size_t aclGetCompileoptSize(aclCompileOpt) { return 64; }
EXPORT aclError aclGetCompileopt(aclCompileOpt, char* value, size_t n) {
    if (n) value[0] = 0;
    return ACL_SUCCESS;
}
EXPORT aclError aclmdlInitDump() { return ACL_SUCCESS; }
EXPORT aclError aclmdlSetDump(const char*) { return ACL_SUCCESS; }
EXPORT aclError aclmdlFinalizeDump() { return ACL_SUCCESS; }

// Kernels as binaries: there is nothing here that could run them.
static int no_binaries(const char* call) {
    return npu_sim_error(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "%s: compiled device kernels are not simulated", call);
}
EXPORT aclError aclrtBinaryGetFunction(const aclrtBinHandle, const char*, aclrtFuncHandle*) { return no_binaries("aclrtBinaryGetFunction"); }
EXPORT aclError aclrtBinaryLoadFromData(const void*, size_t, const aclrtBinaryLoadOptions*, aclrtBinHandle*) { return no_binaries("aclrtBinaryLoadFromData"); }
EXPORT aclError aclrtGetFunctionAddr(aclrtFuncHandle, void**, void**) { return no_binaries("aclrtGetFunctionAddr"); }
EXPORT int rtDevBinaryRegister(const void*, void**) { return no_binaries("rtDevBinaryRegister"); }
EXPORT int rtFunctionRegister(void*, const void*, const char*, const void*, uint32_t) { return no_binaries("rtFunctionRegister"); }
EXPORT int rtKernelLaunch(const void*, uint32_t, void*, uint32_t, void*, void*) { return no_binaries("rtKernelLaunch"); }
EXPORT int rtGetC2cCtrlAddr(uint64_t*, uint32_t*) { return no_binaries("rtGetC2cCtrlAddr"); }

// The profiler is told nothing.
EXPORT int32_t MsprofRegisterCallback(uint32_t, void*) { return 0; }
EXPORT int32_t MsprofReportApi(uint32_t, const void*) { return 0; }
EXPORT int32_t MsprofReportCompactInfo(uint32_t, void*, uint32_t) { return 0; }
EXPORT int32_t MsprofReportAdditionalInfo(uint32_t, void*, uint32_t) { return 0; }
EXPORT uint64_t MsprofGetHashId(const char*, size_t) { return 0; }
EXPORT uint64_t MsprofSysCycleTime() { return 0; }
