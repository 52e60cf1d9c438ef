"""Which drafted tokens a model would have chosen itself, a Triton kernel of the package."""

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel(
    "verify_tree_greedy",
    "(Tensor(a!) predicts, Tensor(b!) accept_index, Tensor(c!) accept_token_num, "
    "Tensor candidates, Tensor retrive_index, Tensor retrive_next_token, "
    "Tensor retrive_next_sibling, Tensor target_predict) -> ()",
)
def verify_tree_greedy(
    predicts,
    accept_index,
    accept_token_num,
    candidates,
    retrive_index,
    retrive_next_token,
    retrive_next_sibling,
    target_predict,
):
    """Walk each request's tree from its root, as long as a child is what the model predicts."""
    predicted = target_predict.flatten()
    for request in range(len(candidates)):
        rows, tokens = retrive_index[request].tolist(), candidates[request].tolist()
        children = retrive_next_token[request].tolist()
        siblings = retrive_next_sibling[request].tolist()
        node, accepted = 0, [rows[0]]
        while len(accepted) < accept_index.shape[1]:
            node = children[node]
            while node != -1 and tokens[node] != predicted[accepted[-1]]:
                node = siblings[node]
            if node == -1:
                break
            accepted.append(rows[node])
        for place, row in enumerate(accepted):
            accept_index[request, place] = row
            predicts[row] = predicted[row]
        accept_token_num[request] = len(accepted) - 1
