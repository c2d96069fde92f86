"""The tasks that make pictures of picture files, in the order of the commands."""

from .brighten import TASK as BRIGHTEN
from .clean import TASK as CLEAN
from .colorize import TASK as COLORIZE
from .faces import TASK as FACES
from .repair import TASK as REPAIR
from .rescale import RESTORE, SHRINK
from .task import Task
from .upscale import TASK as UPSCALE

TASKS: dict[str, Task] = {
    task.name: task for task in (UPSCALE, COLORIZE, BRIGHTEN, CLEAN, REPAIR, SHRINK, RESTORE, FACES)
}
