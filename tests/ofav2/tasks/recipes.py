"""Recipes of the task `digit_value`."""

from tests.ofav2 import tiny

OTHER_TASK = tiny.TWO.replace("run:", "task: digit_value\nrun:")
RECIPE = OTHER_TASK.replace("se_b", "ee_b") + "teacher: {policy: best, distance: mse}\n"
