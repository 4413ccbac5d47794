try:
    import a_package_that_nobody_has
except ImportError:
    a_package_that_nobody_has = None
import json
