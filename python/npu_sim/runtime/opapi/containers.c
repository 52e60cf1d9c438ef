// libopapi.so, the part written by hand: the argument containers of aclnn operators, and the launch.
//
// The entry points aclnn<Name>GetWorkspaceSize are generated (see table.py): each jumps through a
// slot of npu_sim_aclnn_table, which Python fills with a function that decodes these containers and
// hands out an executor. aclnn<Name> then launches that executor on a stream.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../acl/device.h"

enum { MAX_DIMS = 10 };

// Mirrored by ctypes structures in dispatch.py.
typedef struct {
    int64_t n_dims, n_storage_dims, dtype, format, offset;
    int64_t dims[MAX_DIMS], strides[MAX_DIMS], storage_dims[MAX_DIMS];
    void* data;
} Tensor;
typedef struct {
    int64_t n;
    void* items;
} List;
typedef struct {
    int64_t dtype;
    char value[16];
} Scalar;

Tensor* aclCreateTensor(const int64_t* dims, uint64_t n_dims, int dtype, const int64_t* strides, int64_t offset, int format,
                        const int64_t* storage_dims, uint64_t n_storage_dims, void* data) {
    if (n_dims > MAX_DIMS || n_storage_dims > MAX_DIMS) {
        npu_sim_error(161002, "aclCreateTensor: more than %d dimensions", MAX_DIMS);
        return NULL;
    }
    Tensor* t = calloc(1, sizeof *t);
    t->n_dims = (int64_t)n_dims, t->n_storage_dims = (int64_t)n_storage_dims;
    t->dtype = dtype, t->format = format, t->offset = offset, t->data = data;
    memcpy(t->dims, dims, 8 * n_dims);
    memcpy(t->strides, strides, 8 * n_dims);
    memcpy(t->storage_dims, storage_dims, 8 * n_storage_dims);
    return t;
}
int aclDestroyTensor(Tensor* t) {
    free(t);
    return 0;
}

static size_t scalar_bytes(int dtype) {
    switch (dtype) {
        case 0: case 3: case 8: return 4;             // float, int32, uint32
        case 1: case 6: case 7: case 27: return 2;    // float16, int16, uint16, bfloat16
        case 9: case 10: case 11: case 16: return 8;  // int64, uint64, double, complex64
        case 17: return 16;                           // complex128
        default: return 1;
    }
}
Scalar* aclCreateScalar(void* value, int dtype) {
    Scalar* s = calloc(1, sizeof *s);
    s->dtype = dtype;
    memcpy(s->value, value, scalar_bytes(dtype));
    return s;
}
int aclDestroyScalar(Scalar* s) {
    free(s);
    return 0;
}

// The storage of a tensor that aclnnNpuFormatCast is to write, allocated for the caller: for
// FRACTAL_NZ (29) tiles of 16 rows by 32 bytes of additional_dtype (CANN aclnnNpuFormatCast.md).
int aclnnNpuFormatCastCalculateSizeAndFormat(const Tensor* source, int format, int additional_dtype, int64_t** dims,
                                             uint64_t* n_dims, int* actual_format) {
    int64_t n = source->n_dims, to_tiles = format == 29 && n >= 2;
    int64_t* d = *dims = malloc(8 * (size_t)(n + 2));
    memcpy(d, source->dims, 8 * (size_t)n);
    if (to_tiles) {
        int64_t width = 32 / (int64_t)scalar_bytes(additional_dtype >= 0 ? additional_dtype : (int)source->dtype);
        int64_t rows = d[n - 2], columns = d[n - 1];
        d[n - 2] = (columns + width - 1) / width, d[n - 1] = (rows + 15) / 16, d[n] = 16, d[n + 1] = width;
    }
    *n_dims = (uint64_t)(n + 2 * to_tiles);
    *actual_format = format;
    return 0;
}

static List* make_list(const void* items, uint64_t n, size_t item_bytes) {
    List* l = calloc(1, sizeof *l);
    l->n = (int64_t)n;
    l->items = malloc(n * item_bytes + 1);
    memcpy(l->items, items, n * item_bytes);
    return l;
}
static int drop_list(List* l, int owns_items) {
    if (!l) return 0;
    for (int64_t i = 0; owns_items && i < l->n; i++) free(((void**)l->items)[i]);
    free(l->items);
    free(l);
    return 0;
}
List* aclCreateIntArray(const int64_t* v, uint64_t n) { return make_list(v, n, 8); }
List* aclCreateFloatArray(const float* v, uint64_t n) { return make_list(v, n, 4); }
List* aclCreateBoolArray(const char* v, uint64_t n) { return make_list(v, n, 1); }
List* aclCreateTensorList(Tensor* const* v, uint64_t n) { return make_list(v, n, 8); }
List* aclCreateScalarList(Scalar* const* v, uint64_t n) { return make_list(v, n, 8); }
int aclDestroyIntArray(List* l) { return drop_list(l, 0); }
int aclDestroyFloatArray(List* l) { return drop_list(l, 0); }
int aclDestroyBoolArray(List* l) { return drop_list(l, 0); }
int aclDestroyTensorList(List* l) { return drop_list(l, 1); }
int aclDestroyScalarList(List* l) { return drop_list(l, 1); }

// An executor is a number that Python gave out; 0 is none. Set by dispatch.py.
int (*npu_sim_aclnn_run)(void* executor);
void (*npu_sim_aclnn_drop)(void* executor);
const char* (*npu_sim_aclnn_name)(void* executor);

int aclDestroyAclOpExecutor(void* executor) {
    npu_sim_aclnn_drop(executor);
    return 0;
}

// Every aclnn<Name>(workspace, bytes, executor, stream).
int npu_sim_aclnn_launch(void* workspace, uint64_t bytes, void* executor, void* stream) {
    (void)workspace, (void)bytes;
    NpuSimTask task = {npu_sim_aclnn_name(executor), npu_sim_aclnn_run, npu_sim_aclnn_drop, executor, 0};
    return npu_sim_submit(stream, &task);
}
