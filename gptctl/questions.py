"""Whether HellaSwag's questions can be had, told before a run that scores them is launched."""

from msgspec.structs import replace

from gptctl.plan import Plan
from training.errors import DataError
from training.hellaswag_published import VALIDATION


def note_missing_questions(plan: Plan) -> Plan:
    """The plan, with a note where the Hub does not show them to this machine now."""
    if not plan.recipe.eval.hellaswag:
        return plan
    # The Hub's client takes long to import.
    from training.hub import resolve  # noqa: PLC0415
    from training.hub_asking import Patience  # noqa: PLC0415

    try:
        resolve(VALIDATION.repo, VALIDATION.commit, patience=Patience(unreachable_s=0, refused_s=0))
    except DataError as error:
        note = (
            f"HellaSwag's questions cannot be had from here ({error.message}); unless its machine "
            "has or gets them, the run has no such score"
        )
        return replace(plan, notes=(*plan.notes, note))
    return plan
