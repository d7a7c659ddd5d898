"""Packages in which no training state lives: programs, frameworks, clients and parsers.

Any name in them is dangerous. No trainer pickles their objects, and these call, open or delete what
they hold when they are given a state or dropped: a hostile pickle chains them. The list is of the
most common packages of each kind on PyPI, by the names under which they are imported.

A project may have a module of its own for which nothing speaks but its name, and a checkpoint may
hold its classes. So what a project of machine learning may well be called, or call a module, is
left out although a package has it: ``acme``, ``airflow``, ``bandit``, ``behave``, ``box``,
``build``, ``coverage``, ``decouple``, ``falcon``, ``graphene``, ``halo``, ``hunter``, ``identify``,
``impala``, ``injector``, ``locust``, ``mamba``, ``motor``, ``mss``, ``obs``, ``odf``, ``ply``,
``poetry``, ``pyramid``, ``radon``, ``regress``, ``remi``, ``robot``, ``rope``, ``safety``,
``salt``, ``schedule``, ``slack``, ``tortoise``, ``vcr``. So are packages of which objects are met
in checkpoints: settings (``addict``, ``attr``, ``configobj``, ``docopt``, ``marshmallow``,
``munch``, ``omegaconf``, ``pydantic``, ``ruamel``, ``traitlets``, ``yacs``), versions and
containers (``packaging``, ``sortedcontainers``), dates and ids in logs (``bson``, ``dateutil``,
``pytz``), dtypes (``ml_dtypes``), tensors (``safetensors``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

BY_KIND: Mapping[str, str] = {
    "tests": (
        "allure_commons allure_pytest aresponses execnet faker fakeredis "
        "freezegun httpretty hypothesis _hypothesis_ftz_detector _hypothesis_globals "
        "_hypothesis_pytestplugin iniconfig mock moto nose2 nox parameterized pluggy "
        "pyfakefs _pytest pytest pytest_asyncio pytest_bdd pytest_benchmark pytest_cov "
        "pytest_django pytest_html pytest_httpserver pytest_metadata pytest_mock "
        "pytest_randomly pytest_subprocess pytest_timeout requests_mock responses respx "
        "stestr subunit sybil testcontainers testfixtures testtools time_machine tox "
        "xdist xdoctest"
    ),
    "linters, formatters and type checkers": (
        "ast_serialize astroid autoflake autopep8 black blackd blib2to3 check_jsonschema "
        "codespell_lib docformatter flake8 interrogate isort jedi libcst mccabe monkeytype "
        "mypy mypy_extensions mypyc parso pycodestyle pydocstyle pyflakes pylint pyls pylsp "
        "pyright pytype pyupgrade refurb ruff ruff_lsp sarif_kit semgrep sqlfluff yapf"
    ),
    "builds, packages and environments": (
        "auditwheel briefcase bumpversion cfgv cibuildwheel cmake commitizen conda "
        "conda_build cookiecutter copier cx_Freeze Cython delocate distlib _distutils_hack "
        "flit flit_core hatch hatchling jinja2_time maturin mesonbuild mesonpy ninja "
        "nodeenv nuitka pdm pex pip pip_audit pipenv piptools pkg_resources pre_commit "
        "pre_commit_hooks py2app py2exe pybind11 PyInstaller python_discovery "
        "scikit_build_core semantic_release setuptools setuptools_rust setuptools_scm shiv "
        "skbuild towncrier trove_classifiers twine userpath virtualenv virtualenvwrapper "
        "wheel"
    ),
    "documents of programs": (
        "alabaster docutils mkdocs mkdocstrings myst_parser nbsphinx numpydoc pdoc pydoctor "
        "recommonmark sphinx sphinx_autodoc_typehints sphinx_rtd_theme sphinxcontrib zensical"
    ),
    "debuggers and profilers": (
        "asttokens better_exceptions birdseye debugpy executing guppy icecream ipdb IPython "
        "kernprof line_profiler memory_profiler memray objgraph pdbpp ptvsd pudb pure_eval "
        "py_spy _pydev_bundle pydevd _pydevd_bundle pydevd_pycharm pyinstrument pympler "
        "pysnooper remote_pdb rpdb scalene snoop stack_data stackprinter viztracer web_pdb "
        "yappi"
    ),
    "notebooks": (
        "ipykernel ipyparallel ipywidgets jupyter jupyter_client jupyter_console jupyter_core "
        "jupyter_events jupyter_server jupyterhub jupyterlab jupyterlab_server "
        "matplotlib_inline nbclassic nbclient nbconvert nbdime nbformat notebook "
        "notebook_shim papermill qtconsole voila widgetsnbextension"
    ),
    "terminals and command lines": (
        "alive_progress annotated_doc argcomplete argh asciimatics asyncclick beautifultable "
        "blessed blessings bpython click click_default_group click_didyoumean click_plugins "
        "click_repl cliff clize cloup cmd2 colorama colored coloredlogs colorlog "
        "configargparse crashtest cyclopts enlighten fire humanfriendly inquirer "
        "InquirerPy jsonargparse npyscreen pexpect plac prettytable progressbar "
        "prompt_toolkit ptpython ptyprocess pyfiglet PyInquirer pyperclip questionary rich "
        "rich_argparse rich_click shellingham tabulate termcolor terminaltables texttable "
        "textual typer urwid wcwidth winpty xonsh yaspin"
    ),
    "processes, tasks and schedules": (
        "aerich aio_pika aiokafka aiormq amqp ansible ansible_runner apscheduler billiard "
        "celery circus confluent_kafka croniter crontab daemonize dagster delegator dramatiq "
        "fabric fasteners faust filelock honcho huey inotify invoke kafka kombu lockfile "
        "luigi paho pebble pika plumbum portalocker prefect psutil pyinfra pyinotify rq sarge "
        "setproctitle sh stomp subprocess32 supervisor vine watchdog watchfiles watchgod zmq"
    ),
    "frameworks of the web": (
        "aiohttp aiohttp_cors allauth apispec ariadne asgiref authlib blacksheep blinker "
        "chainlit cheroot cherrypy connexion corsheaders daphne dash "
        "dash_bootstrap_components django django_filters djcelery engineio fastapi "
        "fastapi_utils flasgger flask flask_admin flask_bcrypt flask_caching flask_cors "
        "flask_jwt_extended flask_limiter flask_login flask_mail flask_migrate flask_restful "
        "flask_restx flask_session flask_socketio flask_sqlalchemy flask_wtf graphql gunicorn "
        "hypercorn itsdangerous jwcrypto jwt litestar masonite morepath nicegui oauthlib "
        "pywebio quart rest_framework sanic shiny simple_websocket social_core social_django "
        "socketio solara starlette streamlit taipy tornado uvicorn uwsgidecorators waitress "
        "webob webtest werkzeug whitenoise wtforms zope"
    ),
    "clients of the web": (
        "aiofiles aiohttp_retry aiosignal anyio appium asyncssh brotli certifi chardet "
        "charset_normalizer cloudscraper curio dns eventlet fake_useragent feedparser furl "
        "gdown gevent greenlet h11 h2 hpack httpcore httplib2 httpx hyperframe hyperlink idna "
        "itemadapter mechanicalsoup mechanize mitmproxy multidict netaddr netifaces newspaper "
        "parsel playwright publicsuffix2 pycurl pyngrok pyppeteer pytube readability requests "
        "requests_cache requests_file requests_futures requests_html requests_kerberos "
        "requests_ntlm requests_oauthlib requests_toolbelt rfc3986 scrapy selenium "
        "seleniumwire sniffio splinter tldextract trafilatura treq trio twisted "
        "undetected_chromedriver urllib3 uvloop w3lib webdriver_manager websocket websockets "
        "wget whois wsproto yarl youtube_dl yt_dlp zeep"
    ),
    "other machines": (
        "asn1crypto grpc_tools impacket ldap ldap3 napalm ncclient netmiko nmap nornir "
        "paramiko pyasn1 Pyro4 Pyro5 pysftp pysnmp pyVim pyVmomi rpyc scapy scp shodan "
        "smbclient smbprotocol spyne sshtunnel suds thrift zeroconf zerorpc"
    ),
    "clouds and services": (
        "adal adlfs aioboto3 aiobotocore aliyunsdkcore anthropic atlassian aws_cdk "
        "aws_lambda_powertools aws_xray_sdk awscli awswrangler azure b2sdk baidubce boto "
        "boto3 botocore boxsdk braintree bugsnag cdktf chalice CloudFlare cloudflare consul "
        "databricks datadog ddtrace digitalocean discord docker dockerpty dropbox elasticapm "
        "etcd3 firebase_admin gcloud gcsfs github gitlab google_auth_httplib2 "
        "google_auth_oauthlib googleapiclient graypy gspread hcloud heroku3 hvac ibm_boto3 "
        "ibm_botocore ibm_cloud_sdk_core instaloader jaeger_client jira jmespath kazoo "
        "keystoneauth1 kopf kubernetes kubernetes_asyncio libcloud linode_api4 logbook "
        "logstash logstash_async minio msal msal_extensions msrest msrestazure newrelic "
        "notion_client oauth2client obstore oci openai opencensus openshift openstack "
        "opentelemetry oss2 paypalrestsdk podman praw prometheus_client pulumi "
        "py_partiql_parser pydrive pydrive2 pygsheets pyrogram pythonjsonlogger qcloud_cos "
        "qiniu rollbar s3fs s3transfer samcli samtranslator sendgrid sentry_sdk slack_bolt "
        "slack_sdk slackclient snowflake statsd stripe structlog telebot telegram telethon "
        "tencentcloud troposphere tweepy twilio watchtower zappa"
    ),
    "databases": (
        "aiomysql aiopg aioredis aiosqlite alembic apsw arango asyncpg beanie cassandra "
        "chromadb clickhouse_connect clickhouse_driver cloudant couchbase couchdb cx_Oracle "
        "datasette dbt dogpile elastic_transport elasticsearch elasticsearch_dsl gridfs "
        "happybase hdbcli hiredis ibis ibm_db influxdb influxdb_client mariadb meilisearch "
        "memcache mongoengine mysql MySQLdb neo4j neomodel opensearchpy oracledb peewee "
        "pg8000 phoenixdb playhouse pony prestodb psycopg psycopg2 psycopg_pool py2neo "
        "pyArango pyathena pyhive pylibmc pymemcache pymilvus pymongo pymssql pymysql pyodbc "
        "pypika pysolr pysqlcipher3 pytds qdrant_client redis rediscluster rethinkdb "
        "sqlalchemy sqlalchemy_utils sqlglot sqlite_utils sqlmodel sqlparse tinydb trino "
        "turbodbc typesense umongo unqlite vertica_python weaviate whoosh yoyo"
    ),
    "templates": (
        "airium airspeed chameleon Cheetah chevron dominate genshi jinja2 mako markupsafe "
        "pystache tenjin yattag"
    ),
    "parsers of documents, markup and data": (
        "antlr4 bleach borb bs4 camelot cerberus cffi colander commonmark cssselect cssutils "
        "defusedxml docx docx2pdf docxtpl ebooklib elementpath exchangelib extract_msg "
        "fastjsonschema fitz fpdf html5lib icalendar imapclient jsonpatch jsonpath_ng "
        "jsonpointer jsonschema jsonschema_specifications lxml mailparser mammoth markdown "
        "markdown_it mdformat mdit_py_plugins mdurl mistune msoffcrypto O365 olefile oletools "
        "openpyxl parsimonious pathspec pdf2image pdfkit pdfminer pdfplumber pikepdf pptx "
        "pycparser pyexcel pygments pymupdf pyparsing pypdf PyPDF2 PyPDF4 pyquery pyxlsb "
        "referencing reportlab rpds schematics tabula tatsu textract textx tika "
        "tinycss2 untangle vobject voluptuous weasyprint xhtml2pdf xlrd xlsxwriter xlutils "
        "xlwt xmlschema xmltodict yagmail _yaml yaml"
    ),
    "keys and secrets": (
        "angr argon2 bcrypt capstone certbot Crypto Cryptodome cryptography ecdsa frida gnupg "
        "hashids jeepney jose josepy keyring nacl OpenSSL passlib pwn pwnlib pyotp r2pipe rsa "
        "secretstorage trustme yara"
    ),
    "desktops and devices": (
        "appscript bleak bluetooth gpiozero kivy playsound plyer pyautogui pygetwindow pynput "
        "pyscreeze pystray pyttsx3 pywinauto RPi smbus speech_recognition usb vlc wx"
    ),
    "plumbing of programs": (
        "appdirs backoff cachecontrol _cffi_backend ckptool cloudpickle "
        "dependency_injector dill distro dotenv dynaconf environs importlib_metadata "
        "importlib_resources isal isympy jsonpickle lazy_object_proxy librt loky multiprocess "
        "pathos pinject platformdirs py pydispatch pyee retrying send2trash six stevedore "
        "tenacity tomlkit venusian wrapt zipp"
    ),
}  # fmt: skip
# Classes of settings in these packages, of which objects lie in checkpoints: a LightningCLI, or a
# script that calls a parser of jsonargparse, keeps what it was given in ``hyper_parameters``.
SETTINGS = frozenset({
    "jsonargparse._namespace.Namespace", "jsonargparse.namespace.Namespace",
    "jsonargparse.Namespace",
})  # fmt: skip


@cache
def stateless() -> frozenset[str]:
    """Return the names of the packages; a small file of torch's own names never asks."""
    return frozenset(name for names in BY_KIND.values() for name in names.split())
