; An app's installer that carries Refit Agent: per user, without administrator's rights.
; An installer that exists already takes the last lines, from the first #define on, and nothing else.
;
;   ISCC /DRefitAgentFolder=dist\refit-agent-0.1.0-windows-x86_64 /DRefitAgentBundle=bundle refit-agent.iss
;
; Checked on Linux: compiled by ISCC 6.3.1 under Wine, and the Setup program run there against a stand-in for the agent.
; Not run on Windows yet.

#ifndef AppVersion
  #define AppVersion "1.0.0"
#endif

[Setup]
; Of your own, and the same for ever: it is how an upgrade finds what it replaces.
AppId=com.example.photo
AppName=Photo
AppVersion={#AppVersion}
AppPublisher=Example
DefaultDirName={autopf}\Photo
DisableProgramGroupPage=yes
; The agent's service, cache and settings are the user's; administrators who install for everybody have no user to
; register a service for. PrivilegesRequiredOverridesAllowed must stay unset.
PrivilegesRequired=lowest
ArchitecturesAllowed=x64compatible
ArchitecturesInstallIn64BitMode=x64compatible
MinVersion=10.0
OutputBaseFilename=photo-{#AppVersion}-setup
SolidCompression=no
SetupLogging=yes
UninstallLogging=yes
WizardStyle=modern

[Languages]
Name: "english"; MessagesFile: "compiler:Default.isl"

; [Files] and whatever else is the app's own comes here.

#ifndef RefitAgentFolder
  #define RefitAgentFolder "..\..\dist\refit-agent-windows-x86_64"
#endif
#ifndef RefitAgentBundle
  #define RefitAgentBundle "bundle"
#endif
#include "refit-agent.inc.iss"
