# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""The parts of runner.py, which says how they work together."""
