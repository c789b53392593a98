[InstallDelete]
; The section comes first, so that this file may be included from within [Code] too.
;
; Refit Agent in an app's installer, for Inno Setup 6.3 and later: include this file once, after [Setup].
; It brings the agent's folder and the app's bundle, registers the service for this user, makes the bundle's engines
; ready with progress, and takes all of it away again. Every name here begins with RefitAgent, and every event is hooked
; by an attribute, so that nothing collides with what a script has already.
;
; Checked on Linux: compiled by ISCC 6.3.1 under Wine, and the Setup program run there against a stand-in for the agent.
; Not run on Windows yet.
;
; Define before including:
;   RefitAgentFolder     the folder that packaging/windows/build.py made, on the machine that compiles
;   RefitAgentBundle     the app's bundle, on the machine that compiles
; and, if the defaults do not suit:
;   RefitAgentDeadline   seconds that provisioning may take; /REFITAGENTDEADLINE= changes it, 0 leaves it out
;   RefitAgentPublicKey  the key that the bundle must be signed by, as ed25519:...

#if Ver >= 0x07000000
  #error The records for CreateProcess below are those of a 32-bit Setup
#endif
#ifndef RefitAgentFolder
  #error Define RefitAgentFolder: the folder that packaging/windows/build.py made
#endif
#ifndef RefitAgentBundle
  #error Define RefitAgentBundle: the folder of the app's bundle
#endif
#ifndef RefitAgentDeadline
  #define RefitAgentDeadline "600"
#endif
#ifndef RefitAgentGrace
  ; Seconds after the deadline in which an agent that works ends by itself.
  #define RefitAgentGrace "30"
#endif
#ifdef RefitAgentPublicKey
  #define RefitAgentKeyOption " --public-key " + RefitAgentPublicKey
#else
  #define RefitAgentKeyOption ""
#endif

; What an older version had and this one has not would be imported all the same.
Type: filesandordirs; Name: "{app}\refit-agent\lib"
Type: filesandordirs; Name: "{app}\refit-agent\python"

[Files]
Source: "{#RefitAgentFolder}\*"; DestDir: "{app}\refit-agent"; Flags: ignoreversion recursesubdirs createallsubdirs
; Weights and stripped plans are compressed already or cannot be: trying takes minutes and gains nothing.
Source: "{#RefitAgentBundle}\*"; DestDir: "{app}\bundle"; Flags: ignoreversion recursesubdirs createallsubdirs nocompression
; Of the version to come, to stop the one that is there.
Source: "{#RefitAgentFolder}\windows\RefitAgent.psm1"; Flags: dontcopy
Source: "{#RefitAgentFolder}\windows\Unregister-RefitAgent.ps1"; Flags: dontcopy

[UninstallDelete]
Type: dirifempty; Name: "{app}\refit-agent"

[CustomMessages]
RefitAgentTitle=Preparing for this computer
RefitAgentDescription=The models are being fitted to your graphics card. This is done once.
RefitAgentStopping=Stopping the service of the version that is installed
RefitAgentRegistering=Starting the service
RefitAgentProvisioning=Looking at this computer
RefitAgentSkip=Do this &later
RefitAgentTimeLeft=about %1 s left
RefitAgentNotReady=The models could not be fitted to your graphics card now (code %1). The installation is complete; this will be tried again when the app is started.
RefitAgentAskPurge=Delete the fitted models as well? Other apps of yours that use Refit Agent would have to fit theirs anew.

[Code]
type
  { As they are in a 32-bit program, which Setup is in Inno Setup 6. }
  TRefitAgentStartup = record
    cb, lpReserved, lpDesktop, lpTitle: DWORD;
    dwX, dwY, dwXSize, dwYSize, dwXCountChars, dwYCountChars, dwFillAttribute, dwFlags: DWORD;
    wShowWindow, cbReserved2: Word;
    lpReserved2, hStdInput, hStdOutput, hStdError: DWORD;
  end;
  TRefitAgentProcess = record
    hProcess, hThread: THandle;
    dwProcessId, dwThreadId: DWORD;
  end;

function RefitAgentCreateProcess(Filename, CommandLine: String; ProcessAttributes, ThreadAttributes: DWORD; Inherit: BOOL;
  Flags, Environment: DWORD; Folder: String; var Startup: TRefitAgentStartup; var Process: TRefitAgentProcess): BOOL;
  external 'CreateProcessW@kernel32.dll stdcall';
function RefitAgentCreateJob(Attributes, Name: DWORD): THandle; external 'CreateJobObjectW@kernel32.dll stdcall';
function RefitAgentIntoJob(Job, Process: THandle): BOOL; external 'AssignProcessToJobObject@kernel32.dll stdcall';
function RefitAgentEndJob(Job: THandle; Code: DWORD): BOOL; external 'TerminateJobObject@kernel32.dll stdcall';
function RefitAgentResume(Thread: THandle): DWORD; external 'ResumeThread@kernel32.dll stdcall';
function RefitAgentWaitFor(Handle: THandle; Milliseconds: DWORD): DWORD; external 'WaitForSingleObject@kernel32.dll stdcall';
function RefitAgentExitCode(Handle: THandle; var Code: DWORD): BOOL; external 'GetExitCodeProcess@kernel32.dll stdcall';
function RefitAgentClose(Handle: THandle): BOOL; external 'CloseHandle@kernel32.dll stdcall';
function RefitAgentTicks: DWORD; external 'GetTickCount@kernel32.dll stdcall';

const
  RefitAgentSuspended = $4; { CREATE_SUSPENDED }
  RefitAgentNoWindow = $8000000; { CREATE_NO_WINDOW }
  RefitAgentWaitTimeout = $102;
  RefitAgentNotStarted = -1;
  RefitAgentStopped = -2;

var
  RefitAgentPage: TOutputProgressWizardPage;
  RefitAgentSkipButton: TNewButton;
  RefitAgentSkipped: Boolean;
  RefitAgentOffset: Integer;
  RefitAgentRest: AnsiString;
  RefitAgentThousandths: Integer;

procedure RefitAgentSkipClick(Sender: TObject);
begin
  RefitAgentSkipped := True;
  RefitAgentSkipButton.Enabled := False;
end;

<event('InitializeWizard')>
procedure RefitAgentInitializeWizard;
begin
  RefitAgentPage := CreateOutputProgressPage(CustomMessage('RefitAgentTitle'), CustomMessage('RefitAgentDescription'));
  { A progress page has no buttons of the wizard's. }
  RefitAgentSkipButton := TNewButton.Create(RefitAgentPage);
  RefitAgentSkipButton.Parent := RefitAgentPage.Surface;
  RefitAgentSkipButton.Caption := CustomMessage('RefitAgentSkip');
  RefitAgentSkipButton.Width := ScaleX(110);
  RefitAgentSkipButton.Height := WizardForm.CancelButton.Height;
  RefitAgentSkipButton.Left := RefitAgentPage.SurfaceWidth - RefitAgentSkipButton.Width;
  RefitAgentSkipButton.Top := ScaleY(96);
  RefitAgentSkipButton.OnClick := @RefitAgentSkipClick;
  RefitAgentSkipButton.Visible := False;
end;

{ ---------------------------------------------------------------- one line of JSON }

{ Where the value of a key begins; 0 if there is none. A quote within a text is escaped, so that a key's name followed
  by a quote and a colon is nothing but a key. }
function RefitAgentValueAt(const Line, Key: String): Integer;
var
  Mark: String;
begin
  Mark := '"' + Key + '":';
  Result := Pos(Mark, Line);
  if Result = 0 then
    Exit;
  Result := Result + Length(Mark);
  while (Result <= Length(Line)) and (Line[Result] = ' ') do
    Result := Result + 1;
end;

function RefitAgentText(const Line, Key: String): String;
var
  At: Integer;
begin
  Result := '';
  At := RefitAgentValueAt(Line, Key);
  if (At = 0) or (At > Length(Line)) then
    Exit;
  if Line[At] <> '"' then
    Exit;
  At := At + 1;
  while At <= Length(Line) do begin
    if Line[At] = '"' then
      Exit;
    if (Line[At] = '\') and (At < Length(Line)) then begin
      At := At + 1;
      case Line[At] of
        'u': begin
          Result := Result + Chr(StrToIntDef('$' + Copy(Line, At + 1, 4), 63));
          At := At + 4;
        end;
        'b', 'f', 'n', 'r', 't': Result := Result + ' ';
      else
        Result := Result + Line[At];
      end;
    end else
      Result := Result + Line[At];
    At := At + 1;
  end;
end;

{ A number of zero or more in tenths, rounded down; Default for null and for what is no number. }
function RefitAgentTenths(const Line, Key: String; const Default: Integer): Integer;
var
  At, Past: Integer;
begin
  Result := Default;
  At := RefitAgentValueAt(Line, Key);
  if At = 0 then
    Exit;
  Past := At;
  while (Past <= Length(Line)) and (Pos(Line[Past], '0123456789') > 0) do
    Past := Past + 1;
  { Nine digits would overflow an integer once multiplied. }
  if (Past = At) or (Past - At > 8) then
    Exit;
  Result := StrToIntDef(Copy(Line, At, Past - At), 0) * 10;
  if (Past < Length(Line)) and (Line[Past] = '.') then
    Result := Result + StrToIntDef(Copy(Line, Past + 1, 1), 0);
end;

{ ---------------------------------------------------------------- what the agent says }

procedure RefitAgentShow(const Line: String);
var
  Tenths: Integer;
  Left: String;
begin
  if RefitAgentText(Line, 'event') <> 'progress' then begin
    if RefitAgentText(Line, 'event') <> '' then
      Log('Refit Agent: ' + Line);
    Exit;
  end;
  Tenths := RefitAgentTenths(Line, 'percent', 0);
  if Tenths > RefitAgentThousandths then
    RefitAgentThousandths := Tenths;
  Left := '';
  Tenths := RefitAgentTenths(Line, 'eta_s', -1);
  if Tenths >= 0 then
    Left := FmtMessage(CustomMessage('RefitAgentTimeLeft'), [IntToStr((Tenths + 9) div 10)]);
  RefitAgentPage.SetText(RefitAgentText(Line, 'text'), Left);
end;

{ Reads what was added to the file since the last time, and shows every line of it that is whole. }
procedure RefitAgentReadOn(const Name: String);
var
  Stream: TFileStream;
  Piece: AnsiString;
  Count, Cut: Integer;
begin
  if not FileExists(Name) then
    Exit;
  try
    Stream := TFileStream.Create(Name, fmOpenRead or fmShareDenyNone);
    try
      Count := Stream.Size - RefitAgentOffset;
      if Count <= 0 then
        Exit;
      Stream.Position := RefitAgentOffset;
      SetLength(Piece, Count);
      Count := Stream.Read(Piece, Count);
      SetLength(Piece, Count);
      RefitAgentOffset := RefitAgentOffset + Count;
    finally
      Stream.Free;
    end;
  except
    Log('Refit Agent: its progress cannot be read: ' + GetExceptionMessage);
    Exit;
  end;
  RefitAgentRest := RefitAgentRest + Piece;
  Cut := Pos(#10, RefitAgentRest);
  while Cut > 0 do begin
    RefitAgentShow(Trim(String(Copy(RefitAgentRest, 1, Cut - 1))));
    Delete(RefitAgentRest, 1, Cut);
    Cut := Pos(#10, RefitAgentRest);
  end;
end;

{ ---------------------------------------------------------------- running it }

{ Runs a program without a window, for at most so many seconds, while the wizard goes on answering. Gives its exit code,
  RefitAgentNotStarted or RefitAgentStopped. Output names the file that the program writes its progress to, or is ''. }
function RefitAgentRun(const Filename, Params, Output: String; const Seconds: Integer): Integer;
var
  Startup: TRefitAgentStartup;
  Process: TRefitAgentProcess;
  Job: THandle;
  Began, Code: DWORD;
begin
  Result := RefitAgentNotStarted;
  Log('Refit Agent: ' + Filename + ' ' + Params);
  RefitAgentOffset := 0;
  RefitAgentRest := '';
  Startup.cb := SizeOf(Startup);
  { The job holds its children too: refit-agent.exe starts Python, and that its worker. Suspended until it is in there, or
    a quick child would escape. }
  Job := RefitAgentCreateJob(0, 0);
  try
    if RefitAgentCreateProcess(Filename, '"' + Filename + '" ' + Params, 0, 0, False,
      RefitAgentSuspended or RefitAgentNoWindow, 0, ExpandConstant('{tmp}'), Startup, Process) then
      RefitAgentIntoJob(Job, Process.hProcess)
    else begin
      Log('Refit Agent: it cannot be started: ' + SysErrorMessage(DLLGetLastError));
      Exit;
    end;
    RefitAgentResume(Process.hThread);
    Began := RefitAgentTicks;
    while RefitAgentWaitFor(Process.hProcess, 100) = RefitAgentWaitTimeout do begin
      if Output <> '' then
        RefitAgentReadOn(Output);
      { This also lets the wizard see the user's clicks. }
      RefitAgentPage.SetProgress(RefitAgentThousandths, 1000);
      if RefitAgentSkipped or (RefitAgentTicks - Began > DWORD(Seconds) * 1000) then begin
        RefitAgentEndJob(Job, 1);
        Log('Refit Agent: stopped');
        Result := RefitAgentStopped;
        Exit;
      end;
    end;
    if Output <> '' then
      RefitAgentReadOn(Output);
    if RefitAgentExitCode(Process.hProcess, Code) then
      Result := Code;
    Log('Refit Agent: exit code ' + IntToStr(Result));
  finally
    if Process.hProcess <> 0 then begin
      RefitAgentClose(Process.hThread);
      RefitAgentClose(Process.hProcess);
    end;
    RefitAgentClose(Job);
  end;
end;

function RefitAgentPowerShell(const Script, Params: String; const Seconds: Integer): Integer;
begin
  { The 64-bit one, whichever Setup is. A policy of the machine that allows signed scripts alone overrides Bypass:
    then there is no service, and everything else works. }
  Result := RefitAgentRun(ExpandConstant('{sysnative}\WindowsPowerShell\v1.0\powershell.exe'),
    '-NoProfile -NonInteractive -ExecutionPolicy Bypass -File ' + AddQuotes(Script) + ' ' + Params, '', Seconds);
end;

procedure RefitAgentProvision(const Seconds: Integer);
var
  Output, Command: String;
  Code: Integer;
begin
  Output := ExpandConstant('{tmp}\refit-agent.jsonl');
  { In quotes even without spaces: an & in a user's name would end the command there. }
  Command := '"' + ExpandConstant('{app}\refit-agent\refit-agent.exe') + '" provision "' +
    ExpandConstant('{app}\bundle') + '" --progress=json --deadline ' + IntToStr(Seconds) + '{#RefitAgentKeyOption} > "' +
    Output + '" 2> "' + ExpandConstant('{tmp}\refit-agent.log') + '"';
  { /s: only the outermost quotes are taken off. The deadline is the agent's own; this one is for an agent that hangs. }
  Code := RefitAgentRun(ExpandConstant('{cmd}'), '/d /s /c "' + Command + '"', Output, Seconds + {#RefitAgentGrace});
  if (Code <> 0) and not RefitAgentSkipped then
    SuppressibleMsgBox(FmtMessage(CustomMessage('RefitAgentNotReady'), [IntToStr(Code)]), mbInformation, MB_OK, IDOK);
end;

{ ---------------------------------------------------------------- Setup }

<event('PrepareToInstall')>
function RefitAgentPrepareToInstall(var NeedsRestart: Boolean): String;
begin
  Result := '';
  if not DirExists(ExpandConstant('{app}\refit-agent')) then
    Exit;
  { Files of a program that runs cannot be replaced. }
  ExtractTemporaryFile('RefitAgent.psm1');
  ExtractTemporaryFile('Unregister-RefitAgent.ps1');
  RefitAgentThousandths := 0;
  RefitAgentPage.SetText(CustomMessage('RefitAgentStopping'), '');
  RefitAgentPage.Show;
  try
    RefitAgentPowerShell(ExpandConstant('{tmp}\Unregister-RefitAgent.ps1'),
      '-Folder ' + AddQuotes(ExpandConstant('{app}\refit-agent')), 120);
  finally
    RefitAgentPage.Hide;
  end;
end;

<event('CurStepChanged')>
procedure RefitAgentCurStepChanged(CurStep: TSetupStep);
var
  Seconds: Integer;
begin
  if CurStep <> ssPostInstall then
    Exit;
  Seconds := StrToIntDef(ExpandConstant('{param:REFITAGENTDEADLINE|{#RefitAgentDeadline}}'), {#RefitAgentDeadline});
  RefitAgentThousandths := 0;
  RefitAgentPage.SetText(CustomMessage('RefitAgentRegistering'), '');
  RefitAgentSkipButton.Visible := True;
  RefitAgentPage.Show;
  try
    RefitAgentPowerShell(ExpandConstant('{app}\refit-agent\windows\Register-RefitAgent.ps1'), '-WaitSeconds 15', 120);
    RefitAgentPage.SetText(CustomMessage('RefitAgentProvisioning'), '');
    if (Seconds > 0) and not RefitAgentSkipped then
      RefitAgentProvision(Seconds);
    { Quick, and not what the user did not want to wait for: the service makes ready what was left out. }
    RefitAgentSkipButton.Visible := False;
    RefitAgentSkipped := False;
    RefitAgentRun(ExpandConstant('{app}\refit-agent\refit-agent.exe'),
      'register ' + AddQuotes(ExpandConstant('{app}\bundle')) + '{#RefitAgentKeyOption}', '', 60);
  finally
    RefitAgentPage.Hide;
  end;
end;

{ ---------------------------------------------------------------- Uninstall }

<event('CurUninstallStepChanged')>
procedure RefitAgentCurUninstallStepChanged(CurUninstallStep: TUninstallStep);
var
  Folder, Params: String;
  Code: Integer;
begin
  if CurUninstallStep <> usUninstall then
    Exit;
  Folder := ExpandConstant('{app}\refit-agent');
  Params := '-Folder ' + AddQuotes(Folder);
  if SuppressibleMsgBox(CustomMessage('RefitAgentAskPurge'), mbConfirmation, MB_YESNO or MB_DEFBUTTON2, IDNO) = IDYES then
    Params := Params + ' -Purge';
  { While the service is there to hear it. }
  Exec(Folder + '\refit-agent.exe', 'unregister ' + AddQuotes(ExpandConstant('{app}\bundle')), '', SW_HIDE,
    ewWaitUntilTerminated, Code);
  Exec(ExpandConstant('{sysnative}\WindowsPowerShell\v1.0\powershell.exe'),
    '-NoProfile -NonInteractive -ExecutionPolicy Bypass -File ' + AddQuotes(Folder + '\windows\Unregister-RefitAgent.ps1') +
    ' ' + Params, '', SW_HIDE, ewWaitUntilTerminated, Code);
  Log('Refit Agent: its service is removed, exit code ' + IntToStr(Code));
end;
