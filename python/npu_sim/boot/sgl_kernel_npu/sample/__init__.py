from npu_sim.boot.missing import missing_in

missing_in(__name__)
