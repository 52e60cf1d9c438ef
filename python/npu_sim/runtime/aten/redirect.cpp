// The aten kernels of the device, and those of npu:: and atb:: operators with a Python model.
//
// One boxed kernel takes the place of the device's kernels: it views the device memory of every
// tensor argument as a CPU tensor, runs the operator's CPU kernel on those views, and wraps what is
// new as NPU tensors. Inference only: autograd of these operators is lost.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <mutex>
#include <sstream>

#include "../acl/device.h"
#include "torch_npu/csrc/aten/NPUGeneratorImpl.h"
#include "torch_npu/csrc/core/npu/NPUFunctions.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

namespace {

using at::Tensor;
using c10::IValue;

bool on_npu(const Tensor& t) { return t.defined() && t.device().type() == c10::DeviceType::PrivateUse1; }

// A CPU tensor over the memory of an NPU tensor. `owner` keeps the memory alive, or is undefined:
// a graph refers to addresses, as on the device, and does not keep tensors.
Tensor view_on_host(const Tensor& t, const Tensor& owner) {
    auto options = at::TensorOptions().dtype(t.dtype()).device(c10::kCPU);
    void* data = t.numel() == 0 || !t.has_storage() ? nullptr : const_cast<void*>(t.const_data_ptr());
    Tensor host = data ? at::from_blob(data, t.sizes(), t.strides(), [owner](void*) {}, options)
                       : at::empty_strided(t.sizes(), t.strides(), options);
    if (t.is_conj()) host._set_conj(true);
    if (t.is_neg()) host._set_neg(true);
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) host.unsafeGetTensorImpl()->set_wrapped_number(true);
    return host;
}

struct Argument {
    Tensor npu, host;
    bool written;
};

// A CPU generator that stands for an NPU generator for one call: seeded by its seed and its offset,
// which then advances, so that seeding, saving and restoring the state work as on the device.
at::Generator host_generator(at::Generator npu) {
    auto* state = at::check_generator<at_npu::NPUGeneratorImpl>(npu);
    std::lock_guard<std::mutex> lock(npu.mutex());
    const uint64_t offset = state->philox_offset_per_thread();
    state->set_philox_offset_per_thread(offset + 4);
    return at::detail::createCPUGenerator(state->current_seed() + offset * 0x9E3779B97F4A7C15ull);
}

// Copies between host and device that aten itself defines take tensors of both; everything else of
// aten refuses host tensors with dimensions, as the device does. Operators of npu:: and atb:: say
// themselves which arguments are host tensors.
bool takes_host_tensors(const c10::OperatorName& name) {
    const std::string& n = name.name;
    return n.rfind("aten::", 0) != 0 || n.find("copy") != std::string::npos || n.rfind("aten::index", 0) == 0 ||
           n == "aten::_index_put_impl_";
}

class Call {
  public:
    explicit Call(const c10::OperatorHandle& op) : op_(op), mixed_(takes_host_tensors(op.operator_name())) {}

    void to_host(torch::jit::Stack& stack) {
        const auto& arguments = op_.schema().arguments();
        const size_t base = stack.size() - arguments.size();
        int64_t default_generator = -1;
        for (size_t i = 0; i < arguments.size(); i++) {
            IValue& v = stack[base + i];
            const auto* alias = arguments[i].alias_info();
            const bool written = alias && alias->isWrite();
            if (v.isTensor()) {
                v = host(v.toTensor(), written);
            } else if (v.isTensorList()) {
                auto list = v.toTensorVector();
                for (Tensor& t : list) t = host(t, written);
                v = list;
            } else if (v.isOptionalTensorList()) {
                c10::List<std::optional<Tensor>> list;
                for (const std::optional<Tensor>& t : v.toOptionalTensorList())
                    list.push_back(t && t->defined() ? std::optional<Tensor>(host(*t, written)) : t);
                v = list;
            } else if (v.isDevice()) {
                if (v.toDevice().type() == c10::DeviceType::PrivateUse1) device_ = v.toDevice(), v = c10::Device(c10::kCPU);
            } else if (v.isGenerator()) {
                auto g = v.toGenerator();
                if (g.defined() && g.device().type() == c10::DeviceType::PrivateUse1) v = host_generator(g);
            } else if (v.isNone() && is_generator(*arguments[i].type())) {
                default_generator = i;
            }
        }
        if (default_generator >= 0 && (device_ || !arguments_.empty()))
            stack[base + default_generator] = host_generator(at_npu::detail::getDefaultNPUGenerator(device_of_results().index()));
        TORCH_CHECK(!saw_host_ || arguments_.empty() || mixed_,
                    "Expected all tensors to be on the same device, but found at least two devices, npu and cpu! (",
                    op_.operator_name(), ")");
    }

    void run(torch::jit::Stack& stack) {
        at::AutoDispatchBelowADInplaceOrView guard;
        op_.callBoxed(&stack);
    }

    // Arguments that the CPU kernel resized or gave other memory.
    void write_back() {
        for (Argument& a : arguments_) {
            const bool resized = !a.host.sizes().equals(a.npu.sizes());
            if (!resized && (a.npu.numel() == 0 || a.host.const_data_ptr() == a.npu.const_data_ptr())) continue;
            if (resized) a.npu.resize_(a.host.sizes());
            view_on_host(a.npu, a.npu).copy_(a.host);
        }
    }

    // Turns the results on the stack into NPU tensors.
    void to_npu(torch::jit::Stack& stack) {
        const size_t n = op_.schema().returns().size(), base = stack.size() - n;
        for (size_t i = 0; i < n; i++) {
            IValue& v = stack[base + i];
            if (v.isTensor()) {
                v = npu(v.toTensor());
            } else if (v.isTensorList()) {
                auto list = v.toTensorVector();
                for (Tensor& t : list) t = npu(t);
                v = list;
            }
        }
    }

    // Bytes of host tensors that a device would have to be sent (written: that it would send back).
    uint64_t host_bytes(bool written) const { return written ? host_written_ : host_read_; }
    const std::vector<Argument>& arguments() const { return arguments_; }
    const std::vector<Tensor>& created() const { return created_; }

  private:
    c10::Device device_of_results() const {
        if (device_) return *device_;
        if (!arguments_.empty()) return arguments_[0].npu.device();
        return c10::Device(c10::DeviceType::PrivateUse1, c10_npu::current_device());
    }

    static bool is_generator(const c10::Type& type) {
        if (type.kind() == c10::TypeKind::GeneratorType) return true;
        return type.kind() == c10::TypeKind::OptionalType && type.containedType(0)->kind() == c10::TypeKind::GeneratorType;
    }

    Tensor host(const Tensor& t, bool written) {
        if (!on_npu(t)) {
            if (t.defined() && t.dim() > 0) {
                saw_host_ = true;
                (written ? host_written_ : host_read_) += t.nbytes();
            }
            return t;
        }
        for (Argument& a : arguments_)
            if (a.npu.is_same(t)) {
                a.written |= written;
                return a.host;
            }
        arguments_.push_back({t, view_on_host(t, t), written});
        return arguments_.back().host;
    }

    Tensor npu(const Tensor& t) {
        if (!t.defined()) return t;
        for (Argument& a : arguments_)
            if (a.host.is_same(t)) return a.npu;
        for (Argument& a : arguments_)  // a view of an argument
            if (t.has_storage() && a.host.has_storage() && t.storage().is_alias_of(a.host.storage()) && t.dtype() == a.npu.dtype())
                return a.npu.as_strided(t.sizes(), t.strides(), a.npu.storage_offset() + t.storage_offset());
        Tensor r = at::empty_strided(t.sizes(), t.strides(), t.options().device(device_of_results()).pinned_memory(false));
        if (t.numel()) view_on_host(r, r).copy_(t);
        created_.push_back(r);
        return r;
    }

    const c10::OperatorHandle& op_;
    std::vector<Argument> arguments_;
    std::vector<Tensor> created_;
    std::optional<c10::Device> device_;
    uint64_t host_read_ = 0, host_written_ = 0;
    bool mixed_, saw_host_ = false;
};

uint64_t extent(const Tensor& t) {
    if (!t.defined() || t.numel() == 0) return 0;
    uint64_t last = 0;
    for (int64_t d = 0; d < t.dim(); d++) last += static_cast<uint64_t>((t.size(d) - 1) * t.stride(d));
    return (last + 1) * t.element_size();
}

// Views launch nothing: recorded is only what writes.
void record(const std::string& name, const std::vector<NpuSimAccess>& accesses) {
    for (const NpuSimAccess& a : accesses)
        if (a.how & 1) return npu_sim_record("op", name.c_str(), accesses.data(), accesses.size());
}

// What a call reads and writes: all of its arguments, but of a table only the rows that are looked up.
std::vector<NpuSimAccess> accesses_of(const Call& call, const std::string& name) {
    const bool lookup = name == "aten::embedding" || name == "aten::index_select";
    std::vector<NpuSimAccess> out;
    for (const Argument& a : call.arguments()) {
        if (!a.npu.numel()) continue;
        uint64_t bytes = extent(a.npu);
        if (lookup && out.empty() && !call.created().empty()) bytes = std::min<uint64_t>(bytes, call.created()[0].nbytes());
        out.push_back({a.npu.const_data_ptr(), bytes, a.written});
    }
    for (const Tensor& t : call.created())
        if (t.numel()) out.push_back({t.const_data_ptr(), extent(t), 1});
    return out;
}

std::string full_name(const c10::OperatorHandle& op) {
    const auto& n = op.operator_name();
    return n.overload_name.empty() ? n.name : n.name + "." + n.overload_name;
}

// What a graph keeps of a call: the arguments and results as views of fixed addresses.
struct Replayed {
    c10::OperatorHandle op;
    std::string name;
    torch::jit::Stack arguments;
    std::vector<Tensor> results;  // host views; undefined where a result is an argument or a view of one
    std::vector<NpuSimAccess> accesses;
};

int replay(void* state) {
    auto* call = static_cast<Replayed*>(state);
    try {
        c10::InferenceMode guard(true);
        torch::jit::Stack stack = call->arguments;
        {
            at::AutoDispatchBelowADInplaceOrView below;
            call->op.callBoxed(&stack);
        }
        size_t next = 0;
        auto store = [&](const Tensor& t) {
            Tensor& target = call->results[next++];
            if (!target.defined()) return;
            TORCH_CHECK(t.sizes().equals(target.sizes()), call->name, ": a replay gives shape ", t.sizes(), ", captured was ",
                        target.sizes(), ": the shape depends on the data");
            if (t.numel()) target.copy_(t);
        };
        for (const IValue& v : stack) {
            if (v.isTensor()) store(v.toTensor());
            else if (v.isTensorList()) for (const Tensor& t : v.toTensorVector()) store(t);
        }
        if (npu_sim_recording()) record(call->name, call->accesses);
        return 0;
    } catch (const std::exception& e) {
        return npu_sim_error(561000, "%s: %s", call->name.c_str(), e.what());
    }
}

// Drops the owners of host views: a graph must not keep the memory of its tensors.
Tensor unowned(const Call& call, const Tensor& host) {
    for (const Argument& a : call.arguments())
        if (a.host.is_same(host)) return view_on_host(a.npu, Tensor());
    return host;  // a tensor of the host: kept as it is
}

void capture(const c10::OperatorHandle& op, const Call& call, const torch::jit::Stack& host_arguments,
             const torch::jit::Stack& npu_results, void* stream) {
    auto* node = new Replayed{op, full_name(op), {}, {}, accesses_of(call, full_name(op))};
    for (IValue v : host_arguments) {
        if (v.isTensor()) {
            v = unowned(call, v.toTensor());
        } else if (v.isTensorList()) {
            auto list = v.toTensorVector();
            for (Tensor& t : list) t = unowned(call, t);
            v = list;
        } else if (v.isOptionalTensorList()) {
            c10::List<std::optional<Tensor>> list;
            for (const std::optional<Tensor>& t : v.toOptionalTensorList())
                list.push_back(t ? std::optional<Tensor>(unowned(call, *t)) : t);
            v = list;
        }
        node->arguments.push_back(std::move(v));
    }
    auto result = [&](const Tensor& t) {
        bool made = false;
        for (const Tensor& c : call.created()) made |= c.is_same(t);
        node->results.push_back(made ? view_on_host(t, Tensor()) : Tensor());
    };
    for (const IValue& v : npu_results) {
        if (v.isTensor()) result(v.toTensor());
        else if (v.isTensorList()) for (const Tensor& t : v.toTensorVector()) result(t);
    }
    NpuSimTask task = {node->name.c_str(), replay, [](void* s) { delete static_cast<Replayed*>(s); }, node, 1};
    npu_sim_submit(stream, &task);
}

void boxed(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    void* stream = c10_npu::getCurrentNPUStream().stream(false);
    const int state = npu_sim_stream_state(stream);
    const size_t base = stack->size() - op.schema().arguments().size();
    torch::jit::Stack given(stack->begin() + base, stack->end());
    Call call(op);
    call.to_host(*stack);
    torch::jit::Stack host_arguments;
    if (state) host_arguments.assign(stack->begin() + base, stack->end());
    if (state == 2) {
        // An update of a graph's task group: nothing runs, so nothing new can be returned.
        torch::jit::Stack results;
        for (const auto& r : op.schema().returns()) {
            const auto* alias = r.alias_info();
            TORCH_CHECK(alias && alias->isWrite(), full_name(op), ": only operators that write into given tensors can be updated in a graph");
            for (size_t i = 0; i < given.size(); i++) {
                const auto* a = op.schema().arguments()[i].alias_info();
                if (a && *a == *alias) results.push_back(given[i]);
            }
        }
        capture(op, call, host_arguments, results, stream);
        stack->erase(stack->begin() + base, stack->end());
        stack->insert(stack->end(), results.begin(), results.end());
        return;
    }
    TORCH_CHECK(state || npu_sim_ready(stream) == 0, "npu_sim: ", aclGetRecentErrMsg());
    call.run(*stack);
    call.write_back();
    call.to_npu(*stack);
    if (state) {
        capture(op, call, host_arguments, torch::jit::Stack(stack->begin() + base, stack->end()), stream);
    } else if (npu_sim_recording()) {
        const std::string name = full_name(op);
        // aten takes host tensors in copies between lists and as indices: they cross to the device.
        if (name.rfind("aten::", 0) == 0 && !call.arguments().empty()) {
            NpuSimAccess in = {nullptr, call.host_bytes(false), 0}, out = {nullptr, call.host_bytes(true), 0};
            if (in.bytes) npu_sim_record("copy", "host_to_device", &in, 1);
            if (out.bytes) npu_sim_record("copy", "device_to_host", &out, 1);
        }
        record(name, accesses_of(call, name));
    }
}

// Operators that the device lacks: torch_npu would run them on the host, with a warning.
void missing(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack*) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, full_name(op), ": torch_npu has no kernel of this operator for the NPU; a device would copy "
                                "everything to the host and compute there, the simulation refuses");
}

std::vector<std::unique_ptr<torch::Library>> g_libraries;

int install(const char* space, c10::DispatchKey key, const char* names, const std::function<torch::CppFunction()>& kernel) {
    auto library = std::make_unique<torch::Library>(torch::Library::IMPL, space, key, __FILE__, __LINE__);
    std::istringstream in(names);
    std::string name;
    int n = 0;
    for (; in >> name; n++) library->impl(name.c_str(), kernel());
    g_libraries.push_back(std::move(library));
    return n;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// `names`: operators of the namespace `space`, separated by blanks, overloads after a dot.
EXPORT int npu_sim_redirect(const char* space, const char* names) {
    return install(space, c10::DispatchKey::PrivateUse1, names, [] { return torch::CppFunction::makeFromBoxedFunction<&boxed>(); });
}
EXPORT int npu_sim_refuse(const char* space, const char* names) {
    return install(space, c10::DispatchKey::PrivateUse1, names, [] { return torch::CppFunction::makeFromBoxedFunction<&missing>(); });
}
// torch_npu's own autograd kernels call aclnn operators directly: passed over.
EXPORT int npu_sim_drop_autograd(const char* space, const char* names) {
    return install(space, c10::DispatchKey::AutogradPrivateUse1, names, [] { return torch::CppFunction::makeFallthrough(); });
}
