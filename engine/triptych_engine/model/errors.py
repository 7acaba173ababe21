"""What is wrong with a model folder."""


class ModelFolderError(ValueError):
    """A folder that cannot be served.

    The message is one sentence, or one line for each fault; it names fields, tensors and files of the folder
    and never a path, so it is safe to show.
    """
